"""Points of the study's own experiments (linear-probe, retrieval, tricks, blip) by what they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE, codec_title
from benchmarks.results.store import read_points

_OWN = ("kind", "codec", "rate", "parameters", "tricks")  # what tells points of one group apart


@dataclass(frozen=True)
class PointGroup:
    """Comparable points: `reference` is the uncompressed one, `points` the others, families first, each by bytes."""

    title: str
    reference: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]]


def point_groups(out: Path, experiment: str) -> list[PointGroup]:
    """Groups whose reference is measured, in the order of their titles."""
    shared: dict[str, list[dict[str, Any]]] = {}
    for point in read_points(out, experiment):
        key = {name: value for name, value in point["key"].items() if name not in _OWN}
        shared.setdefault(json.dumps(key, sort_keys=True), []).append(point)
    groups = []
    for key, points in shared.items():
        reference = next((point for point in points if point["kind"] == REFERENCE), None)
        if reference is not None:
            others = sorted((point for point in points if point is not reference), key=_order)
            clip = (reference.get("clip") or reference["blip"]).partition("#")[0]
            title = f"{reference['data']['name']}, {clip}, {reference['n']} images"
            groups.append((title, hashlib.sha256(key.encode()).hexdigest()[:6], reference, others))
    titles = [title for title, *_ in groups]
    return [
        PointGroup(f"{title}, {mark}" if titles.count(title) > 1 else title, reference, others)
        for title, mark, reference, others in sorted(groups, key=lambda each: each[:2])
    ]


def by_codec(group: PointGroup) -> dict[str, list[Mapping[str, Any]]]:
    """Points of each codec, by its title."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in group.points:
        found.setdefault(codec_title(point["codec"]), []).append(point)
    return found


def bytes_mean(point: Mapping[str, Any]) -> float | None:
    """Of what was sent for the images that arrived."""
    kept = [size for size in point["bytes"] if size is not None]
    return round(float(np.mean(kept)), 2) if kept else None


def _order(point: Mapping[str, Any]) -> tuple:
    return (FAMILY, PEER).index(point["kind"]), point["codec"], bytes_mean(point) or 0.0, point["rate"]
