"""What a CLIP makes of the same pictures along every way that a cascade can take: vectors and bytes, kept on disk.

Packets are real ones, of the bundles' own encoders; pictures go through the bundles' own decoders and the CLIP's tower.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.codecs import peers
from benchmarks.codecs.peers import Peer
from cloud.engine.prepared import Prepared
from export.teachers import cache_root
from synthesis.decoder_identity import grain_hash

if TYPE_CHECKING:
    from cloud.networks.clip import Clip
    from cloud.networks.runner import TorchRunner
    from thinwire.bundle import Bundle

VERSION = 1  # raise it when the same arguments give other vectors
BATCH = 8


@dataclass(frozen=True, eq=False)
class Sent:
    """Packets of one kind, of every picture. sizes: int (N,) bytes; vectors: float32 (N, D), unit; cpu_ms: of encoding
    one, on average."""

    sizes: np.ndarray
    vectors: np.ndarray
    cpu_ms: float = 0.0


class Seeing:
    """One CLIP with some bundles, asked about one set of views uint8 (N, H, W, 3).

    tick: called with how many pictures were looked at.
    """

    def __init__(
        self,
        clip: Clip,
        runner: TorchRunner,
        views: np.ndarray,
        tick: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.clip, self.views = clip, views
        self._runner, self._tick = runner, tick
        self._stamp = hashlib.sha256(np.ascontiguousarray(views)).hexdigest()

    def bundle(self, bundle: Bundle, rates: Sequence[str]) -> dict[int, Sent]:
        """By layers, or rung. A network runs once for all rates of its bundle."""
        from edge.encoder import Encoder

        levels = {bundle.rates[rate]: rate for rate in rates}
        encoder: list[Encoder] = []  # opened where something is not on disk

        def made(level: int) -> Callable[[int], tuple[bytes, Prepared, float]]:
            if not encoder:
                encoder.append(Encoder(bundle))

            def one(place: int) -> tuple[bytes, Prepared, float]:
                view = self.views[place]
                view = view if view.shape[:2] == bundle.input_size else bundle.view(view)
                started = time.process_time()
                packet = encoder[0].encode(view, levels[level]).packet
                spent = time.process_time() - started
                item = Prepared(bundle.decode(packet), bundle.name, bundle.level(packet), bundle.model_id)
                return packet.to_bytes(), item, spent

            return one

        decoder = bundle.card.cloud.get("files", {})
        grain = filter(None, [grain_hash(bundle)])
        known = ["bundle", bundle.model_id.hex(), bundle.card.edge.get("files", {}), decoder, *grain]
        return {level: self._kept([*known, level], lambda level=level: made(level)) for level in sorted(levels)}

    def peer(self, peer: Peer, side: int, value: float) -> Sent:
        """A bare peer at `side` pixels and one setting."""
        height, width = self.views.shape[1:3]
        ((tall, wide),) = peers.sides(height, width, (side,))

        def one(place: int) -> tuple[bytes, Prepared, float]:
            started = time.process_time()
            data = peers.encode(peer, self.views[place], tall, wide, value)
            spent = time.process_time() - started
            return data, Prepared(peers.restore(peer, data, height, width)), spent

        return self._kept(["peer", peer.name, peer.version(), side, value], lambda: one)

    def pictures(self, views: np.ndarray) -> np.ndarray:
        """The originals as the CLIP takes them, uint8 (N, H, W, 3) → float32 (N, D)."""
        said = ["originals", hashlib.sha256(np.ascontiguousarray(views)).hexdigest()]
        return self._kept(said, lambda: lambda place: (b"", Prepared(views[place]), 0.0)).vectors

    def _kept(self, said: list[object], make: Callable[[], Callable[[int], tuple[bytes, Prepared, float]]]) -> Sent:
        text = json.dumps([VERSION, self.clip.id, self._stamp, *said], sort_keys=True, default=str)
        folder = cache_root() / "cascade"
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        if path.exists():
            with np.load(path) as held:
                self._tick(len(self.views))
                return Sent(held["sizes"], held["vectors"], float(held["cpu_ms"]))
        sent = self._made(make())
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, sizes=sent.sizes, vectors=sent.vectors, cpu_ms=sent.cpu_ms)
        partial.rename(path)
        return sent

    def _made(self, one: Callable[[int], tuple[bytes, Prepared, float]]) -> Sent:
        sizes, vectors, spent = [], [], 0.0
        for start in range(0, len(self.views), BATCH):
            items = []
            for place in range(start, min(start + BATCH, len(self.views))):
                data, item, seconds = one(place)
                sizes.append(len(data))
                items.append(item)
                spent += seconds
            vectors.append(self._runner.run(items).embeddings)
            self._tick(len(items))
        return Sent(np.array(sizes), np.concatenate(vectors), 1000 * spent / max(1, len(self.views)))
