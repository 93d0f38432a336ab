"""Photographs that nobody labelled, as a data set: whoever measures says later what is right."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.data.sets import Dataset, Item

if TYPE_CHECKING:
    from export.photographs.collection import Photographs


def unlabelled(photographs: Photographs, labels: Sequence[str], limit: int, seed: int = 0) -> Dataset:
    """At most `limit` photographs by seed, as they are stored; every target is 0 until `answered` says otherwise."""
    ids = photographs.sample(limit, seed).tolist()
    places = {f"{number:07d} {photographs.name(photo)}": photo for number, photo in enumerate(ids)}
    digest = hashlib.sha256(f"{photographs.identity} {seed} {ids}".encode()).hexdigest()
    items = tuple(Item(name, 0) for name in places)
    return Dataset(
        photographs.described(),
        items,
        tuple(labels),
        digest,
        len(photographs),
        lambda name: photographs.stored(places[name]),
    )


def answered(data: Dataset, kept: Sequence[int], targets: Sequence[int]) -> Dataset:
    """The items at the places `kept`, with these targets."""
    return replace(data, items=tuple(Item(data.items[place].name, target) for place, target in zip(kept, targets)))
