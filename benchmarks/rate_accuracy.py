"""The rate-accuracy experiment: every family's rates and every peer's size x quality, on the same images and CLIP.

Families travel: view → edge client → gRPC → a real server of their own → labels, one image at a time, as in
`benchmarks.evaluate`. Peers and the uncompressed reference are judged in this process (see `benchmarks.judge`). All
start from one canonical view, and encode_ms is from that view to the bytes that would be sent, on one thread.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks import peers as codecs
from benchmarks.data import Dataset
from benchmarks.evaluate import TOP_K, UNCOMPRESSED, Record, attempt, png_bytes, summarise, warm_up
from benchmarks.judge import Judge
from benchmarks.peers import Peer
from benchmarks.points import PointStore, task_key
from benchmarks.service import running_service
from benchmarks.statistics import pareto_front
from cloud.decode import Decoder
from edge.client import Client, Result
from thinwire.bundle import Bundle
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view, open_image

REFERENCE, FAMILY, PEER = "reference", "family", "peer"
CACHED_VIEW_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Point:
    """One way of sending. `parameters` say all that its bytes depend on; they are part of the stored point's key."""

    kind: str
    codec: str
    rate: str | None
    parameters: dict[str, object]
    peer: Peer | None = None
    bundle: Bundle | None = None


@dataclass
class Progress:
    """What a run tells while it goes; the command line puts a bar behind it."""

    images: Callable[[int], object] = lambda n: None  # that many measured
    skipped: Callable[[int], None] = lambda n: None  # that many found on disk
    planned: Callable[[int], None] = lambda n: None  # that many more to come
    point: Callable[[str], None] = lambda name: None  # what is measured now


class Views:
    """Canonical views of a data set, made once as far as memory allows. A broken image raises each time it is asked."""

    def __init__(self, data: Dataset, height: int, width: int) -> None:
        self._data, self._size = data, (height, width)
        self._made: dict[int, np.ndarray | ThinwireError] = {}
        self._room = CACHED_VIEW_BYTES // (height * width * 3)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3). Raises `ImageError`, which names the file."""
        found = self._made.get(index)
        if found is None:
            item = self._data.items[index]
            try:
                found = canonical_view(open_image(self._data.read(item), item.name), *self._size)
                found.setflags(write=False)
            except ThinwireError as error:
                found = error
            if len(self._made) < self._room:
                self._made[index] = found
        if isinstance(found, ThinwireError):
            raise found
        return found


def family_points(bundle: Bundle, codec: str) -> list[Point]:
    """One point for each rate. The model id leaves encoder and decoder weights out, so their hashes are named too."""
    files = {
        file: entry["sha256"]
        for section in (bundle.card.edge, bundle.card.cloud)
        for file, entry in section["files"].items()
    }
    return [
        Point(
            FAMILY,
            codec,
            rate,
            {
                "layers": layers,
                "model_id": bundle.model_id.hex(),
                "view": list(bundle.input_size),
                "encoder": bundle.encoder_path().name,
                "files": files,
            },
            bundle=bundle,
        )
        for rate, layers in bundle.rates.items()
    ]


def peer_points(peer: Peer, height: int, width: int) -> list[Point]:
    """Every size x setting of a codec, for views of height x width."""
    return [
        Point(
            PEER,
            peer.name,
            f"{w}x{h} {peer.dial} {value:g}" if h != w else f"{w}px {peer.dial} {value:g}",
            {"side": min(h, w), "height": h, "width": w, peer.dial: value, "encoder": peer.version()},
            peer=peer,
        )
        for h, w in codecs.sides(height, width)
        for value in peer.ladder
    ]


@dataclass
class RateAccuracy:
    """One run. `judge` classifies peers; families go to servers started with `clip`, the same model."""

    data: Dataset
    judge: Judge
    clip: str
    prompt_set: str
    seed: int
    store: PointStore
    threads: int = 1
    progress: Progress = field(default_factory=Progress)
    measured: int = 0  # points that were not found on disk

    def run(self, families: Sequence[Bundle], peers: Sequence[Peer]) -> list[dict]:
        """Rows of all points, the reference first."""
        height, width = self.judge.view_size
        self._views = Views(self.data, height, width)
        bundles = [family_points(bundle, name) for bundle, name in zip(families, _codec_names(families))]
        grids = [peer_points(peer, height, width) for peer in peers]
        self.progress.planned((1 + sum(map(len, bundles + grids))) * len(self.data.items))
        reference_point = Point(REFERENCE, UNCOMPRESSED, None, {"height": height, "width": width, "encoder": "PNG"})
        reference = self._judged(reference_point)
        rows = [self._row(reference_point, reference, reference)]
        for points in bundles:
            rows += self._rows(points, self._family(points), reference)
        for grid in grids:
            rows += self._rows(grid, [self._judged(point) for point in grid], reference)
        return rows

    def _key(self, point: Point) -> dict[str, object]:
        task = task_key(self.data, self.judge.clip.id, self.prompt_set, self.seed)
        return {**task, "kind": point.kind, "codec": point.codec, "rate": point.rate, "parameters": point.parameters}

    def _stored(self, point: Point) -> Record | None:
        record = self.store.load(self._key(point))
        if record is not None:
            self.progress.skipped(len(self.data.items))
        return record

    def _keep(self, point: Point, record: Record) -> Record:
        self.store.save(self._key(point), record)
        self.measured += 1
        return self.store.load(self._key(point)) or record  # so that first and later runs print the same digits

    # ---------------------------------------------------------------- families: the real edge, wire and server

    def _family(self, points: Sequence[Point]) -> list[Record]:
        records = [self._stored(point) for point in points]
        if all(records):
            return records
        bundle = points[0].bundle
        size = bundle.input_size
        views = self._views if size == self.judge.view_size else Views(self.data, *size)
        pixels = bundle.card.cloud["output"] == "pixels"
        decoder = Decoder([bundle]) if pixels else None
        with _served(self.clip, bundle, self.threads) as client:
            self.judge.check_agrees(client, _ramp(*self.judge.view_size), self.data.labels, self.prompt_set)
            for place, point in enumerate(points):
                if records[place] is None:
                    self.progress.point(f"{point.codec} {point.rate}")
                    record = measure_rate(
                        client, decoder, self.data, views, point, self.prompt_set, lambda: self.progress.images(1)
                    )
                    records[place] = self._keep(point, record)
        return records

    # ---------------------------------------------------------------- peers: the same CLIP in this process

    def _judged(self, point: Point) -> Record:
        stored = self._stored(point)
        if stored is not None:
            return stored
        self.progress.point(f"{point.codec} {point.rate or ''}".strip())
        record = measure_views(self.judge, self.data, self._views, point, self.prompt_set, self.progress.images)
        return self._keep(point, record)

    # ---------------------------------------------------------------- rows

    def _rows(self, points: Sequence[Point], records: Sequence[Record], reference: Record) -> list[dict]:
        rows = [self._row(point, record, reference) for point, record in zip(points, records)]
        for index in pareto_front(*_curve(rows)):
            rows[index]["hull"] = True
        return rows

    def _row(self, point: Point, record: Record, reference: Record) -> dict:
        targets = [self.data.labels[item.target] for item in self.data.items]
        height, width = self.judge.view_size  # one denominator for all, whatever a codec shrinks
        row = summarise(record, targets, reference, height * width, self.seed)
        return {"kind": point.kind, **row, "hull": False, "parameters": point.parameters}


def measure_rate(
    client: Client,
    decoder: Decoder | None,
    data: Dataset,
    views: Views,
    point: Point,
    prompt_set: str,
    tick: Callable[[], None],
) -> Record:
    """One rate of a bundle over all images through the edge client, one at a time.

    With a `decoder` the same packet (encoding is deterministic) also becomes the picture whose PSNR is taken. Raises
    `ServerUnreachable`; whatever else befalls an image is counted as its failure.
    """
    record = Record(point.codec, point.rate)
    warm_up(client, data.labels, [point.rate], prompt_set)
    for index, item in enumerate(data.items):

        def send(index: int = index) -> tuple[Result, float, float]:
            view = views[index]
            result = client.classify(view, data.labels, TOP_K, prompt_set, point.rate)
            psnr = math.nan
            if decoder is not None:
                packet = client.encoder.encode(view, point.rate).packet.to_bytes()
                psnr = codecs.psnr_db(view, decoder.picture(packet))
            return result, result.encode_ms + result.code_ms, psnr

        attempt(record, item.name, send)
        tick()
    return record


def measure_views(
    judge: Judge, data: Dataset, views: Views, point: Point, prompt_set: str, tick: Callable[[int], None]
) -> Record:
    """A peer's point (or the reference) over all images: encode (timed), decode, enlarge, classify in batches."""
    record = Record(point.codec, point.rate)
    height, width = judge.view_size
    _encode_and_see(point, np.full((height, width, 3), 128, np.uint8))  # codecs load their libraries when first used
    for start in range(0, len(data.items), judge.batch):
        seen: list[tuple[np.ndarray, int, float, float] | str] = []
        for index in range(start, min(start + judge.batch, len(data.items))):
            try:
                seen.append(_encode_and_see(point, views[index]))
            except Exception as error:  # image codecs share no base class below Exception
                seen.append(f"{data.items[index].name}: {error}")
        good = [each for each in seen if not isinstance(each, str)]
        answers = iter(judge.answers([each[0] for each in good], data.labels, prompt_set, TOP_K))
        for each in seen:
            if isinstance(each, str):
                record.add_failure(each)
            else:
                _, size, encode_ms, psnr = each
                record.add_answer([p.label for p in next(answers)], size, encode_ms, psnr_db=psnr)
        tick(len(seen))
    return record


def _encode_and_see(point: Point, view: np.ndarray) -> tuple[np.ndarray, int, float, float]:
    """(what CLIP is shown, bytes, milliseconds from view to bytes, PSNR)."""
    settings = point.parameters
    started = time.perf_counter()
    if point.peer is None:
        data = png_bytes(view)
        return view, len(data), 1000 * (time.perf_counter() - started), math.nan
    data = codecs.encode(point.peer, view, settings["height"], settings["width"], settings[point.peer.dial])
    encode_ms = 1000 * (time.perf_counter() - started)
    seen = codecs.restore(point.peer, data, *view.shape[:2])
    return seen, len(data), encode_ms, codecs.psnr_db(view, seen)


@contextlib.contextmanager
def _served(clip: str, bundle: Bundle, threads: int) -> Iterator[Client]:
    """A server that holds this bundle alone (two may share a model id), and a client of it."""
    with running_service(clip, bundle.path) as address, Client(address, bundle, threads=threads) as client:
        client.check()
        yield client


def _ramp(height: int, width: int) -> np.ndarray:
    """A smooth coloured picture, uint8 (height, width, 3): any data set has it, also one whose images are broken."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y // height, 255 * x // width, 255 * (x + y) // (height + width)], axis=-1).astype(np.uint8)


def _codec_names(bundles: Sequence[Bundle]) -> list[str]:
    """Names of bundles, told apart where two share one."""
    names = [bundle.name for bundle in bundles]
    return [
        name if names.count(name) == 1 else f"{name}@{bundle.path.resolve().parent.name}/{bundle.path.resolve().name}"
        for name, bundle in zip(names, bundles)
    ]


def _curve(rows: Sequence[dict]) -> tuple[list[float], list[float]]:
    """(bytes, top-1) of rows; NaN where every image failed."""
    return [math.nan if row["bytes_mean"] is None else row["bytes_mean"] for row in rows], [row["top1"] for row in rows]
