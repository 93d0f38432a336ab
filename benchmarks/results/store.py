"""Measured operating points on disk: one JSON file each, named by everything that its numbers depend on.

A run that is killed loses the point that it was measuring and no other; a run with any other images, labels, weights,
CLIP, prompts, settings, versions or machine finds none of these files, so that two configurations never mix. Files hold
what was measured image by image; accuracies, intervals, tables and plots are computed from them each time.
docs/benchmarks.md describes the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.data.sets import Dataset
from thinwire.errors import ThinwireError
from thinwire.files import write_whole

SCHEMA = "thinwire-bench/point/1"
VERSION = 4
"""Part of every key. Raise it when the same settings give other numbers than before."""


MAX_MESSAGES = 5  # of failures, kept beside their count


class ResultsError(ThinwireError):
    """A folder of results cannot be used; the message says what is wrong with it."""

    reason: ClassVar[str] = "BAD_RESULTS"


def data_key(data: Dataset) -> dict[str, object]:
    """Which pictures in which order, with which labels: the pictures' hash alone would miss a corrected label."""
    answers = json.dumps([[item.name, item.target] for item in data.items] + [list(data.labels)], ensure_ascii=False)
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "answers_sha256": hashlib.sha256(answers.encode("utf-8", "surrogatepass")).hexdigest(),
        "n": len(data.items),
    }


@dataclass(frozen=True)
class PointStore:
    """A folder of points of one experiment. `context`: what every file says beside its key (testbed, command, ...)."""

    folder: Path
    experiment: str
    context: Mapping[str, object]
    skip_existing: bool = True

    def path(self, key: Mapping[str, object]) -> Path:
        text = json.dumps(self._whole(key), sort_keys=True, ensure_ascii=True, allow_nan=False)
        said = (str(key[part]) for part in ("data", "photo", "codec", "rate") if key.get(part))
        name = re.sub(r"[^\w.@+-]+", "-", "-".join(said))[:100]
        return self.folder / self.experiment / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def load(self, key: Mapping[str, object]) -> dict[str, Any] | None:
        """The point of this very key; None when it is not there or its file is damaged (it is then measured again)."""
        if not self.skip_existing:
            return None
        try:
            point = read_point(self.path(key))
        except ResultsError:
            return None
        return point if point["key"] == json.loads(json.dumps(self._whole(key))) else None

    def save(self, key: Mapping[str, object], content: Mapping[str, object], wall_s: float) -> dict[str, Any]:
        """Writes a point whole or not at all, and returns it as a later `load` will."""
        point = {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "key": self._whole(key),
            **self.context,
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_s": round(wall_s, 2),
            **content,
        }
        path = self.path(key)
        write_whole(path, json.dumps(point, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")
        return read_point(path)

    def _whole(self, key: Mapping[str, object]) -> dict[str, object]:
        return {"version": VERSION, **key}


def read_point(path: Path) -> dict[str, Any]:
    """A point's file. Raises `ResultsError` when it is missing, damaged or of another schema."""
    try:
        point = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: is not a readable point ({error}): remove it and run the study again") from error
    if not isinstance(point, dict) or point.get("schema") != SCHEMA or not {"key", "experiment"} <= set(point):
        raise ResultsError(f"{path}: is not a point of schema {SCHEMA}: remove it and run the study again")
    return point


def read_points(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """Every point of an experiment, sorted by file name: the order of measuring must not change a report."""
    return [read_point(path) for path in point_paths(folder, experiment)]


def point_paths(folder: Path, experiment: str) -> list[Path]:
    return sorted((folder / experiment).glob("*.json"))


def numbers(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Measured values for JSON: NaN and None, for what was not measured, become null."""
    return [None if value is None or value != value else round(float(value), digits) for value in values]
