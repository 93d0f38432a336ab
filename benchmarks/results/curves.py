"""Each codec's points of a group, from few bytes to many: what the study's statistics are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codecs.grid import PEER, REFERENCE, codec_title
from benchmarks.results.rows import Group, correct, group_points, rows_of
from benchmarks.results.store import read_points

SOURCES = ("rate-accuracy", "domains")
"""Experiments that hold points of this kind."""


@dataclass(frozen=True)
class Curve:
    """One codec of one group. rows and points belong together; rows are as `results.rows.rows_of` makes them."""

    codec: str
    kind: str
    prompt_set: str
    rows: Sequence[Mapping[str, Any]]
    points: Sequence[Mapping[str, Any]]

    @property
    def title(self) -> str:
        return codec_title(self.codec)

    @property
    def sizes(self) -> list[float]:
        """Mean bytes of each point."""
        return [row["bytes_mean"] for row in self.rows]

    @property
    def correct(self) -> np.ndarray:
        """bool (K, N): whether each image was right at each point."""
        return np.array([correct(point, self.prompt_set) for point in self.points])


def study_groups(out: Path) -> list[Group]:
    """Comparable points of all experiments that measure accuracy against bytes."""
    return [group for name in SOURCES for group in group_points(read_points(out, name))]


def curves_of(group: Group, prompt_set: str | None = None, hull: bool = True) -> list[Curve]:
    """Families and peers of a group; of peers the Pareto front, or (`hull` False) every point."""
    prompt_set = prompt_set or group.prompt_sets[0]
    kept: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for row, point in zip(rows_of(group, prompt_set), group.points):
        wanted = row["hull"] or row["kind"] != PEER or not hull
        if row["kind"] != REFERENCE and row["bytes_mean"] is not None and wanted:
            kept.setdefault(row["codec"], []).append((row, point))
    curves = []
    for codec, pairs in kept.items():
        pairs.sort(key=lambda pair: pair[0]["bytes_mean"])
        rows, points = zip(*pairs)
        curves.append(Curve(codec, rows[0]["kind"], prompt_set, rows, points))
    return curves


def first_answers(point: Mapping[str, Any], prompt_set: str) -> list[int | None]:
    """The label index that each image got; None for one without an answer."""
    return [top[0] if top else None for top in point["answers"][prompt_set]["top"]]
