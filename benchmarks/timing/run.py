"""What the points of latency, throughput and energy have in common: keys, and how a point is measured or found.

A point's file (`benchmarks.results.store`) holds beside its key: `load_average` when it began, `rows` (one row, the
figures) and `samples` (what they were made from, image by image, where there is such a thing).
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data.sets import DataError, Dataset
from benchmarks.results.progress import Progress
from benchmarks.results.store import PointStore, data_key
from synthesis.clip_source import SHIPPED, shipped_clip_path
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image

if TYPE_CHECKING:
    from benchmarks.timing.routes import Way

VERSION = 1
"""Part of every key. Raise it when the same settings give other figures than before."""

Key = dict[str, Any]


def timing_key(store: PointStore, data: Dataset, clip: str, prompt_set: str, seed: int, **settings: Any) -> Key:
    """The key of one point. Times depend on the machine, so the testbed is in it; `settings` are the experiment's."""
    return {
        "timing_version": VERSION,
        **data_key(data),
        "seed": seed,
        "clip": clip_identity(clip),
        "prompt_set": prompt_set,
        "testbed": store.context["testbed"],
        **settings,
    }


def found_or_measured(
    store: PointStore, key: Key, named: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The row of a point, and whether it had to be measured. `named` are the row's first keys."""
    point = store.load(key)
    if point is not None:
        return point["rows"][0], False
    started, load_average = time.monotonic(), os.getloadavg()[0]
    result = measure()
    samples = result.pop("samples", {})
    content = {"load_average": round(load_average, 2), "rows": [{**named, **result}], "samples": samples}
    return store.save(key, content, time.monotonic() - started)["rows"][0], True


@dataclass
class TimingRun:
    """What runs of all three experiments share: what is measured on, and rows that are measured once."""

    data: Dataset
    clip: str
    prompt_set: str
    seed: int
    store: PointStore
    _: KW_ONLY
    progress: Progress = field(default_factory=Progress)
    measured: int = 0  # points that were not found on disk

    def _key(self, way: Way, **settings: Any) -> Key:
        of_way = {"kind": way.kind, "codec": way.codec, "rate": way.rate, "parameters": way.parameters}
        return timing_key(self.store, self.data, self.clip, self.prompt_set, self.seed, **of_way, **settings)

    def _readable(self) -> tuple[list[bytes], list[str]]:
        """Files of all images that open, and why the others do not. Raises `DataError` when none does."""
        files, messages = [], []
        for item in self.data.items:
            try:
                file = self.data.read(item)
                open_image(file, item.name)
                files.append(file)
            except ThinwireError as error:
                messages.append(str(error))
        if not files:
            raise DataError(f"{self.data.name}: none of {len(messages)} images can be read: {messages[0]}")
        return files, messages

    def _row(
        self, key: Key, names: tuple[str, ...], units: int, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The row of a point, which begins with `names` of its key. units: what it counts for on the bar."""
        row, new = found_or_measured(self.store, key, {name: key[name] for name in names}, measure)
        self.measured += new
        if not new:
            self.progress.skipped(units)
        return row


@functools.lru_cache(maxsize=8)
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
