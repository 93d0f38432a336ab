"""What the demo measures beside the answers: the pictures that the cloud saw, and the best bare AV1 still's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import fixed_rungs
from benchmarks.codecs.peers import PEERS, png_bytes
from cloud.decode import Decoder
from edge.line.client import Client
from thinwire.bundle import Bundle

RIVAL = "av1"


@dataclass(frozen=True)
class Rival:
    """A rung of bare AV1 over all photographs of the demo. right: how many of them got their label first."""

    rung: str
    mean_bytes: float
    right: int


def pictures(bundle: Bundle, packets: Sequence[bytes]) -> list[np.ndarray | None]:
    """Packets → what the cloud's CLIP was shown, uint8 (H, W, 3); None of a bundle that decodes to vectors."""
    if bundle.card.cloud["output"] != "pixels":
        return [None] * len(packets)
    decoder = Decoder([bundle])
    return [decoder.picture(packet) for packet in packets]


def equal_rival(
    client: Client, views: Sequence[np.ndarray], wanted: Sequence[tuple[Sequence[str], str]], right: int
) -> Rival | None:
    """The smallest rung of bare AV1 with at least `right` right answers of the same server; else the best of all.

    views: uint8 (H, W, 3); wanted: (labels, true label) of each. The rungs were chosen on training photographs. The
    server is given the decoded and enlarged view as a PNG: what it would make of a bare frame itself.
    """
    rungs = []
    for side, value in fixed_rungs()[RIVAL]:
        sent = [_sent(view, side, value) for view in views]
        rungs.append((float(np.mean([len(data) for data in sent])), f"{side} px quality {value:g}", sent))
    tried = []
    for size, name, sent in sorted(rungs, key=lambda each: each[0]):
        hits = 0
        for view, data, (labels, label) in zip(views, sent, wanted):
            seen = codecs.restore(PEERS[RIVAL], data, *view.shape[:2])
            hits += client.classify_file(png_bytes(seen), labels, 1).predictions[0].label == label
        tried.append(Rival(name, round(size, 1), hits))
        if hits >= right:
            return tried[-1]
    return max(tried, key=lambda each: each.right, default=None)


def _sent(view: np.ndarray, side: int, value: float) -> bytes:
    ((height, width),) = codecs.sides(*view.shape[:2], (side,))
    return codecs.encode(PEERS[RIVAL], view, height, width, value)
