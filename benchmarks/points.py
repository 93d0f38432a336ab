"""Measured operating points on disk: one file each, named by everything that its numbers depend on.

A run that is killed loses the point that it was measuring and no other; a run with any other images, labels, weights,
CLIP, prompts, settings or code version finds none of these files, so that two configurations never mix. Files hold what
was measured image by image; accuracies and intervals are computed from them anew each time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.data import Dataset
from benchmarks.evaluate import Record

VERSION = 1
"""Part of every key. Raise it when the same settings give other numbers than before."""


def task_key(data: Dataset, clip_id: str, prompt_set: str, seed: int) -> dict[str, object]:
    """What all points of a run share. The hash of the pictures alone would miss a corrected label."""
    answers = json.dumps([[item.name, item.target] for item in data.items] + [list(data.labels)], ensure_ascii=False)
    return {
        "version": VERSION,
        "data_sha256": data.sha256,
        "answers_sha256": hashlib.sha256(answers.encode("utf-8", "surrogatepass")).hexdigest(),
        "clip": clip_id,
        "prompt_set": prompt_set,
        "n": len(data.items),
        "seed": seed,
    }


class PointStore:
    """A folder of records. `labels` are the data set's: predictions are stored as their indices."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.folder = folder
        self._labels = tuple(labels)
        self._index = {label: place for place, label in enumerate(labels)}

    def path(self, key: Mapping[str, object]) -> Path:
        text = json.dumps(key, sort_keys=True, ensure_ascii=True, allow_nan=False)
        name = (
            "-".join(str(key[part]) for part in ("codec", "rate") if key.get(part)).replace("/", "_").replace(" ", "-")
        )
        return self.folder / f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def load(self, key: Mapping[str, object]) -> Record | None:
        """The record of this very key; None when it is not there or its file is damaged (it is then measured again)."""
        try:
            stored = json.loads(self.path(key).read_text(encoding="utf-8"))
            if stored["key"] != json.loads(json.dumps(key)):
                return None
            record = Record(
                stored["codec"],
                stored["rate"],
                [tuple(self._labels[place] for place in ranked) for ranked in stored["predictions"]],
                *([math.nan if x is None else x for x in stored[name]] for name in ("sent_bytes", "encode_ms")),
                [math.nan if x is None else x for x in stored["round_trip_ms"]],
                stored["messages"],
                [math.nan if x is None else x for x in stored["psnr_db"]],
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        counts = {len(record.predictions), len(record.sent_bytes), len(record.encode_ms), len(record.psnr_db)}
        return record if counts == {key["n"]} else None

    def save(self, key: Mapping[str, object], record: Record) -> None:
        """Writes a record whole or not at all."""
        stored = {
            "key": dict(key),
            "codec": record.codec,
            "rate": record.rate,
            "predictions": [[self._index[label] for label in ranked] for ranked in record.predictions],
            "sent_bytes": _plain(record.sent_bytes),
            "encode_ms": _plain(record.encode_ms),
            "round_trip_ms": _plain(record.round_trip_ms),
            "messages": record.messages,
            "psnr_db": _plain(record.psnr_db),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(stored, file, separators=(",", ":"), allow_nan=False)
            os.replace(partial, self.path(key))
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def _plain(values: Sequence[float]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]
