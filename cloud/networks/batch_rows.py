"""Which items of a batch share a call of a network, for both runtimes: first of a decoder, then of an image tower."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from cloud.engine.prepared import Prepared

T = TypeVar("T")


def by_decoder(batch: Sequence[Prepared]) -> list[list[int]]:
    """Places in `batch`, in as many parts as there are calls: one for each decoder, and each size of image files."""
    parts: dict[Hashable, list[int]] = {}
    for place, item in enumerate(batch):
        source = (id(item.net), item.model_id) if item.model_id else item.array.shape
        parts.setdefault(source, []).append(place)
    return list(parts.values())


def by_tower(towers: Sequence[T]) -> list[tuple[T, list[int]]]:
    """The image tower of each item of a part → each tower once, with the places in the part that go through it.

    A tower is told from another by identity: plain and adapted ones belong to one CLIP.
    """
    parts: dict[int, tuple[T, list[int]]] = {}
    for place, tower in enumerate(towers):
        parts.setdefault(id(tower), (tower, []))[1].append(place)
    return list(parts.values())
