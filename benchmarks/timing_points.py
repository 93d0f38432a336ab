"""Timed operating points on disk, one JSON file each, named by everything that their figures depend on.

The habits are those of `benchmarks.points`: a killed run loses the point it was measuring and no other, and a run with
other settings, images, weights or another machine finds none of these files. A file holds

    schema    "thinwire-bench/EXPERIMENT/VERSION"
    key       what was asked for: see `timing_key`; a file answers no other key
    testbed   machine and versions (part of the key too), command  as it was typed, load_average  when it began
    result    the figures; samples, where there are any, in milliseconds and in the order of the images
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Dataset
from benchmarks.points import task_key
from benchmarks.testbed import describe
from cloud.clip import SHIPPED, shipped_clip_path
from thinwire.bundle import Bundle

VERSION = 1
"""Part of every key. Raise it when the same settings give other figures than before."""


class TimingStore:
    """A folder of points of any experiment. `command` is written beside each; `reuse` False measures all anew."""

    def __init__(self, folder: Path, command: Sequence[str], reuse: bool = True) -> None:
        self.folder = folder
        self._command, self._reuse = shlex.join(command), reuse

    def path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
        parts = [str(key[part]) for part in ("experiment", "codec", "rate", "link", "loop") if key.get(part)]
        name = "-".join(parts).replace("/", "_").replace(" ", "-")
        return self.folder / f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def load(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of this very key; None when it is not there, damaged, or not to be used again."""
        if not self._reuse:
            return None
        try:
            stored = json.loads(self.path(key).read_text(encoding="utf-8"))
            return stored["result"] if stored["key"] == json.loads(json.dumps(key)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, key: Mapping[str, Any], result: Mapping[str, Any], load_average: float) -> None:
        """Writes a point whole or not at all."""
        document = {
            "schema": f"thinwire-bench/{key['experiment']}/{VERSION}",
            "key": dict(key),
            "testbed": key["testbed"],
            "command": self._command,
            "load_average": round(load_average, 2),
            "result": dict(result),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, separators=(",", ":"), allow_nan=False)
            os.replace(partial, self.path(key))
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def timing_key(experiment: str, data: Dataset, clip: str, prompt_set: str, seed: int, **settings: Any) -> dict:
    """The key of one point. Times depend on the machine, so the testbed is in it; `settings` are the experiment's."""
    task = task_key(data, clip_identity(clip), prompt_set, seed)
    return {"experiment": experiment, "timing_version": VERSION, **task, "testbed": describe(), **settings}


def clip_identity(spec: str) -> str:
    """`spec`, with a hash of its files where it is a folder, so that other weights make another key."""
    folder = shipped_clip_path() if spec == SHIPPED else Path(spec)
    if not folder.is_dir():
        return spec
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"{folder.name}#{digest.hexdigest()[:16]}"


def bundle_parameters(bundle: Bundle) -> dict[str, Any]:
    """What a bundle's times depend on. The model id leaves encoder and decoder weights out: their hashes are here."""
    sections = (bundle.card.edge, bundle.card.cloud)
    files = {file: entry["sha256"] for section in sections for file, entry in section["files"].items()}
    return {"model_id": bundle.model_id.hex(), "encoder": bundle.encoder_path().name, "files": files}
