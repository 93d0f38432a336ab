"""One operating point over all images: what is sent, how long it takes to make, what CLIP makes of what arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import UNCOMPRESSED, Point
from benchmarks.codecs.peers import png_bytes
from benchmarks.data.views import Views
from benchmarks.judges.judge import Features, Judge, Synthesis
from benchmarks.judges.metrics import ZeroShot, answer_of, ms_ssim, patch_cosine, pooled_cosine, psnr_db, zero_shot
from benchmarks.judges.originals import Originals
from benchmarks.judges.panel import NOBODY, Panel
from benchmarks.judges.perceptual import Perceptual
from benchmarks.results.store import MAX_MESSAGES, numbers
from benchmarks.rig.wire_bytes import WireMeter
from edge.errors import ServerUnreachable
from edge.line.client import Client, Question, Result, prepare
from thinwire.errors import ThinwireError

TIMED_IMAGES = 32
"""Of a point so many images are encoded and sent while nothing else runs, and timed; the rest beside CLIP, untimed."""

ARRAYS = (
    "packet_bytes",
    "message_bytes",
    "wire_bytes",
    "encode_ms",
    "round_trip_ms",
    "psnr_db",
    "ms_ssim",
    "perceptual",
    "pooled_cosine",
    "patch_cosine",
)
_DIGITS = {"pooled_cosine": 6, "patch_cosine": 6, "ms_ssim": 6, "perceptual": 6}


@dataclass
class Sight:
    """What all points of one run share. `prompts`: named templates; families are asked the first over the wire."""

    views: Views
    originals: Originals
    judge: Judge
    meter: WireMeter
    prompts: Mapping[str, tuple[str, ...]]
    tick: Callable[[int], object] = lambda n: None
    perceptual: Perceptual | None = None
    panel: Panel = NOBODY
    heads: dict = field(init=False)
    question: Question = field(init=False)
    place: dict[str, int] = field(init=False)  # of each label among the data's

    def __post_init__(self) -> None:
        self.data = self.views.data
        self.main = next(iter(self.prompts))
        self.heads = self.judge.heads(self.data.labels, self.prompts)
        self.question = Question.check(self.data.labels, len(self.data.labels), self.main)
        self.place = {label: index for index, label in enumerate(self.data.labels)}

    def targets(self, indices: list[int]) -> list[int]:
        return [self.data.items[index].target for index in indices]


class Measurement:
    """One point's figures, image by image in the order of the data set. A failed image has nulls and no answer."""

    def __init__(self, count: int, prompts: Mapping[str, object], panel: Panel = NOBODY) -> None:
        self.arrays: dict[str, list[float | None]] = {name: [None] * count for name in ARRAYS}
        self.answers: dict[str, list[ZeroShot | None]] = {name: [None] * count for name in prompts}
        self.classes: dict[str, list[int | None]] = {judge.name: [None] * count for judge in panel.judges}
        self.failures: dict[int, str] = {}
        self.disagreements = 0

    def put(self, index: int, **values: float | None) -> None:
        for name, value in values.items():
            self.arrays[name][index] = value

    def shown(self, panel: Panel, indices: list[int], pictures: Sequence[np.ndarray]) -> None:
        """The panel's classes of the pictures at `indices`."""
        for name, classes in panel.answers(pictures).items():
            for index, answer in zip(indices, classes):
                self.classes[name][index] = answer

    def judged(self, sight: Sight, indices: list[int], seen: Features) -> None:
        """Cosines against the originals, and the answers of every prompt set that has none yet."""
        original = sight.originals.embed(indices)
        for index, cosine in zip(indices, pooled_cosine(seen.embeddings, original.embeddings)):
            self.put(index, pooled_cosine=cosine)
        if seen.patches is not None and original.patches is not None and seen.patches.shape == original.patches.shape:
            for index, cosine in zip(indices, patch_cosine(seen.patches, original.patches)):
                self.put(index, patch_cosine=cosine)
        for name, head in sight.heads.items():
            for index, answer in zip(indices, zero_shot(head, seen.embeddings, sight.targets(indices))):
                told = self.answers[name][index]
                if told is None:
                    self.answers[name][index] = answer
                elif told.top[0] != answer.top[0]:  # the server's word stands; see `wire_disagreements`
                    self.disagreements += 1

    def content(self) -> dict[str, object]:
        """What a point's file says of its images; see docs/benchmarks.md."""
        return {
            "images": {name: numbers(values, _DIGITS.get(name, 4)) for name, values in self.arrays.items()},
            "answers": {
                name: {
                    "top": [[] if each is None else list(each.top) for each in answers],
                    **{
                        key: numbers([None if each is None else getattr(each, key) for each in answers], 6)
                        for key in ("probability", "true_similarity", "other_similarity")
                    },
                }
                for name, answers in self.answers.items()
            },
            "failed": len(self.failures),
            "failure_messages": list(self.failures.values())[:MAX_MESSAGES],
            "wire_disagreements": self.disagreements,
        }


@dataclass
class _Batch:
    """Some images after the first half of their way. `indices`: those that arrived, in the order of `arrived`."""

    batch: range
    indices: list[int] = field(default_factory=list)
    arrived: list = field(default_factory=list)


def measure_family(client: Client, decoder: Synthesis, point: Point, sight: Sight) -> Measurement:
    """One rate of a bundle: every image through the edge client to the server, one at a time.

    The server's answer to the first prompt set counts. What a reply does not hold (the picture, the vector, the other
    prompt sets) is made here of the same packet, and its answer to the first set is compared with the server's. Raises
    `ServerUnreachable`; whatever else befalls an image is its failure alone.
    """
    done = Measurement(len(sight.data.items), sight.prompts, sight.panel)
    grey = np.full((*sight.views.size, 3), 128, np.uint8)
    client.classify(grey, sight.data.labels, 1, sight.main, point.rate)  # the first request makes the label vectors
    for answered in _ahead(sight, lambda batch: _ask(batch, client, point, sight, done)):
        if answered.indices:
            seen, pictures = decoder.embed_packets(answered.arrived)
            done.judged(sight, answered.indices, seen)
            if pictures is not None:
                views = np.stack([sight.views[index] for index in answered.indices])
                _compare(done, sight, answered.indices, views, pictures)
                done.shown(sight.panel, answered.indices, pictures)
        sight.tick(len(answered.batch))
    return done


def _ask(batch: range, client: Client, point: Point, sight: Sight, done: Measurement) -> _Batch:
    """Packets that were sent and answered."""
    asked = _Batch(batch)
    for index in batch:
        try:
            prepared = prepare(client.encoder, sight.views[index], point.rate, sight.question)
            result = client.ask(prepared)
            packet = prepared.request.image.packet
            message, wire = sight.meter.measure(sight.question, packet=packet)
        except ServerUnreachable:
            raise  # a thousand more timeouts would measure nothing
        except ThinwireError as error:
            done.failures[index] = f"{sight.data.items[index].name}: {error}"
            continue
        done.answers[sight.main][index] = _told(result, sight.place, sight.data.items[index].target)
        done.put(index, packet_bytes=result.packet_bytes, message_bytes=message, wire_bytes=wire)
        if batch.start < TIMED_IMAGES:
            done.put(index, encode_ms=result.encode_ms + result.code_ms, round_trip_ms=result.round_trip_ms)
        asked.indices.append(index)
        asked.arrived.append(packet)
    return asked


def _told(result: Result, place: Mapping[str, int], target: int) -> ZeroShot:
    order = np.array([place[each.label] for each in result.predictions])
    similarities = np.empty(len(place))
    similarities[order] = [each.similarity for each in result.predictions]
    return answer_of(order, similarities, result.best.probability, target)


def measure_views(point: Point, sight: Sight) -> Measurement:
    """A peer's point (or the reference): encode, decode, enlarge, and classify in batches in this process."""
    done = Measurement(len(sight.data.items), sight.prompts, sight.panel)
    height, width = sight.judge.view_size
    grey = np.full((height, width, 3), 128, np.uint8)
    _through(point, grey)  # codecs load their libraries when first used
    for restored in _ahead(sight, lambda batch: _restore(batch, point, sight, done)):
        if restored.indices:
            done.judged(sight, restored.indices, sight.judge.embed(restored.arrived))
            done.shown(sight.panel, restored.indices, restored.arrived)
        sight.tick(len(restored.batch))
    return done


def _ahead(sight: Sight, work: Callable[[range], _Batch]) -> Iterator[_Batch]:
    """Batches in order. Once enough images are timed, the next batch is made while CLIP looks at this one."""
    batches = _batches(len(sight.data.items), sight.judge.batch)
    timed = [batch for batch in batches if batch.start < TIMED_IMAGES]
    for batch in timed:
        yield work(batch)
    with ThreadPoolExecutor(1, "ahead") as worker:
        coming = None
        for batch in [*batches[len(timed) :], None]:
            following = None if batch is None else worker.submit(work, batch)
            if coming is not None:
                yield coming.result()
            coming = following


def _restore(batch: range, point: Point, sight: Sight, done: Measurement) -> _Batch:
    """Views as a peer leaves them, uint8 (H, W, 3) each, compared with what they were."""
    restored, originals = _Batch(batch), []
    for index in batch:
        try:
            view = sight.views[index]
            data, encode_ms, picture = _through(point, view)
        except Exception as error:  # image codecs share no base class below Exception
            done.failures[index] = f"{sight.data.items[index].name}: {error}"
            continue
        message, wire = sight.meter.measure(sight.question, image_file=data)
        done.put(index, packet_bytes=len(data), message_bytes=message, wire_bytes=wire)
        done.put(index, encode_ms=encode_ms if batch.start < TIMED_IMAGES else None)
        restored.indices.append(index)
        restored.arrived.append(picture)
        originals.append(view)
    if originals and point.codec != UNCOMPRESSED:
        _compare(done, sight, restored.indices, np.stack(originals), np.stack(restored.arrived))
    return restored


def _through(point: Point, view: np.ndarray) -> tuple[bytes, float, np.ndarray]:
    """(file, milliseconds from view to file, what CLIP is shown)."""
    settings = point.parameters
    started = time.perf_counter()
    if point.peer is None:
        data = png_bytes(view)
        return data, 1000 * (time.perf_counter() - started), view
    data = codecs.encode(point.peer, view, settings["height"], settings["width"], settings[point.peer.dial])
    encode_ms = 1000 * (time.perf_counter() - started)
    return data, encode_ms, codecs.restore(point.peer, data, *view.shape[:2])


def _compare(done: Measurement, sight: Sight, indices: list[int], views: np.ndarray, seen: np.ndarray) -> None:
    if sight.perceptual is not None:
        for index, distance in zip(indices, sight.perceptual.distances(indices, views, seen)):
            done.put(index, perceptual=distance)
    for index, view, picture, similarity in zip(indices, views, seen, ms_ssim(views, seen)):
        done.put(index, psnr_db=psnr_db(view, picture), ms_ssim=similarity)


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
