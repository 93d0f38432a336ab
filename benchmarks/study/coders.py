"""Views through any codec in this process, and what CLIP makes of them: for experiments that ask no server for answers.

The same objects work as on the wire (`edge.encoder`, `synthesis`, CLIP of the server); `accuracy.operating_point`
compares both ways point by point (`wire_disagreements`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import Point, codec_names, family_points, peer_points, reference_point
from benchmarks.codecs.peers import Peer, png_bytes
from benchmarks.judges.judge import Judge, Synthesis
from edge.encoder import Encoder
from thinwire.bundle import Bundle

if TYPE_CHECKING:
    from benchmarks.results.progress import Progress
    from benchmarks.results.store import PointStore
    from benchmarks.study.study import Study

View = Callable[[tuple[int, int]], np.ndarray]
"""(height, width) → the canonical view of one image, uint8 (height, width, 3)."""


@dataclass(frozen=True, eq=False)
class Coder:
    """One operating point. `through` gives of each view the bytes sent, CLIP's vectors and the pictures it saw."""

    point: Point
    judge: Judge
    encoder: Encoder | None = None
    decoder: Synthesis | None = None

    @property
    def gives_pixels(self) -> bool:
        return self.decoder is None or self.decoder.gives_pixels

    def through(self, views: Sequence[View]) -> tuple[list[int], np.ndarray, np.ndarray | None]:
        """At most `judge.batch` images → (bytes of each, unit vectors (B, D), pictures uint8 (B, H, W, 3) or None)."""
        if self.encoder is not None and self.decoder is not None:
            size = self.encoder.bundle.input_size
            packets = [self.encoder.encode(view(size), self.point.rate).packet.to_bytes() for view in views]
            seen, pictures = self.decoder.embed_packets(packets)
            return [len(packet) for packet in packets], seen.embeddings, pictures
        files, pictures = zip(*(self._file(view(self.judge.view_size)) for view in views))
        return [len(file) for file in files], self.judge.embed(pictures).embeddings, np.stack(pictures)

    def _file(self, view: np.ndarray) -> tuple[bytes, np.ndarray]:
        peer, settings = self.point.peer, self.point.parameters
        if peer is None:
            return png_bytes(view), view
        data = codecs.encode(peer, view, settings["height"], settings["width"], settings[peer.dial])
        return data, codecs.restore(peer, data, *view.shape[:2])


def make_coders(
    judge: Judge, families: Sequence[Bundle], peers: Sequence[tuple[Peer, int, float]] = ()
) -> Iterator[Coder]:
    """The uncompressed view, every rate of each family, then peers: (peer, side of a 224-pixel view, dial's value)."""
    height, width = judge.view_size
    yield Coder(reference_point(height, width), judge)
    for bundle, name in zip(families, codec_names(families)):
        encoder, decoder = Encoder(bundle), Synthesis(bundle, judge)
        for point in family_points(bundle, name):
            yield Coder(point, judge, encoder, decoder)
    for peer, side, value in peers:
        ((h, w),) = codecs.sides(height, width, (side,))
        nearest = min(peer.ladder, key=lambda rung: abs(rung - value))
        for point in peer_points(peer, height, width):
            settings = point.parameters
            if (settings["height"], settings["width"], settings[peer.dial]) == (h, w, nearest):
                yield Coder(point, judge)


def study_coders(study: Study, clip: str, peer_points: Sequence[tuple[str, int, float]]) -> list[Coder]:
    """What a study puts before one CLIP: its families, and of `peer_points` (as `make_coders`, by name) its peers."""
    peers = [(codecs.PEERS[name], side, value) for name, side, value in peer_points]
    wanted = [each for each in peers if each[0] in study.peers]
    return list(make_coders(study.judge(clip), study.families_of(clip), wanted))


def coder_key(point: Point) -> dict[str, Any]:
    """What a point's key says of its codec."""
    return {"kind": point.kind, "codec": point.codec, "rate": point.rate, "parameters": point.parameters}


def measured_or_found(
    store: PointStore,
    keys: Sequence[dict[str, Any]],
    units: int,
    measure: Callable[[int], dict[str, Any]],
    progress: Progress,
) -> tuple[int, int]:
    """Measures each key that the store lacks by its place; returns (points there are, points measured)."""
    progress.planned(units * len(keys))
    measured = 0
    for place, key in enumerate(keys):
        if store.load(key) is not None:
            progress.skipped(units)
            continue
        progress.point(f"{key['codec']} {key['rate'] or ''}".strip())
        started = time.monotonic()
        content = measure(place)
        named = {name: key[name] for name in ("kind", "codec", "rate", "parameters")}
        store.save(key, {**named, **content}, time.monotonic() - started)
        measured += 1
    return len(keys), measured
