"""`thinwire-bench study`: every experiment of a preset, resumable, and the report of what has been measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.data import DataError, Dataset, find_datasets, load_dataset
from benchmarks.grid import FULL_GRID, QUICK_GRID, PeerGrid
from benchmarks.points import PointStore
from benchmarks.progress import ended_by_sigterm
from synthesis.memory import keep_freed_memory
from thinwire.errors import ThinwireError
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from benchmarks.judge import Judge
    from benchmarks.peers import Peer
    from thinwire.bundle import Bundle


class StudyError(ThinwireError):
    """A study cannot be run as asked; the message names what can."""

    reason: ClassVar[str] = "BAD_STUDY"


@dataclass(frozen=True)
class Preset:
    """How much is measured. packs: data set → images (None: all); empty: every data set that is there, `limit` each."""

    name: str
    packs: Mapping[str, int | None]
    limit: int | None
    grid: PeerGrid
    about: str


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "quick",
            {"eval-caltech101": 100, "eval-imagenette": 100},
            100,
            QUICK_GRID,
            "100 images of two sets, 9 points a peer; about 37 minutes on 2 cores, 9 of them for latency",
        ),
        Preset(
            "full",
            {},
            None,
            FULL_GRID,
            "every image of every set, 42 points a peer; estimated at 20 hours on 2 idle cores for four packs",
        ),
    )
}


@dataclass
class Study:
    """What every experiment is given; its methods make data sets, CLIPs and stores, so that all have them alike."""

    preset: Preset
    data_dir: Path
    out: Path
    families: Sequence[Bundle]
    peers: Sequence[Peer]
    clips: Sequence[str]
    context: Mapping[str, object]
    seed: int = 0
    limit: int | None = None
    packs: Sequence[str] = ()  # names that replace the preset's
    skip_existing: bool = True
    captions: Path | None = None  # an image-caption set for retrieval
    domains: Sequence[Path] = ()  # further labelled sets, any layout
    blip: str | None = None  # a BLIP image-text matching model: folder or hub name
    _judges: dict[str, Judge] = field(default_factory=dict)

    def store(self, experiment: str) -> PointStore:
        return PointStore(self.out, experiment, self.context, self.skip_existing)

    def judge(self, clip: str) -> Judge:
        """Each CLIP is loaded once for all experiments."""
        from benchmarks.judge import Judge

        if clip not in self._judges:
            self._judges[clip] = Judge(clip)
        return self._judges[clip]

    def families_of(self, clip: str) -> list[Bundle]:
        """Bundles that this CLIP can serve: one that decodes into another CLIP's space is left out, and named."""
        from cloud.errors import ClipMismatch
        from cloud.runner import check_clip

        kept = []
        for bundle in self.families:
            try:
                check_clip(bundle, self.judge(clip).clip)
                kept.append(bundle)
            except ClipMismatch as error:
                print(f"left out: {error}", file=sys.stderr)
        return kept

    def datasets(self, most: int | None = None) -> list[Dataset]:
        """Samples of the labelled sets that are studied, `most` images each. Raises `DataError` when there is none."""
        found = find_datasets(self.data_dir)
        wanted = {name: self.limit or count for name, count in self.preset.packs.items() if name in found}
        if self.packs:
            if missing := [name for name in self.packs if name not in found]:
                raise DataError(f"{self.data_dir} holds no {', '.join(missing)}; it holds {', '.join(found) or 'none'}")
            wanted = dict.fromkeys(self.packs, self.limit or self.preset.limit)
        elif not wanted:  # not our packs: whatever labelled sets are there
            wanted = dict.fromkeys(found, self.limit or self.preset.limit)
        if not wanted:
            raise DataError(f"{self.data_dir}: holds no labelled data set; docs/benchmarks.md shows the layouts")
        counts = {name: count if most is None else min(count or most, most) for name, count in wanted.items()}
        return [load_dataset(found[name], count, self.seed) for name, count in counts.items()]

    def prompts(self, data: Dataset) -> dict[str, tuple[str, ...]]:
        """Named templates, the default first (it is what the service is asked); a set's own as `own`."""
        own = {"own": data.templates} if data.templates else {}
        return {name: PROMPT_SETS[name] for name in ("7", "1", "80")} | own


def _leave_a_core_free() -> None:
    """CLIP beside a thread that encodes: with a thread for every core they would wait for each other."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def run_study(study: Study, only: Sequence[str] = ()) -> dict[str, object]:
    """Runs the experiments (`only` those named), then writes the report, unless nothing has changed since the last.

    Returns the line that a study ends with.
    """
    from benchmarks.experiments import DERIVED, EXPERIMENTS
    from benchmarks.report_stamp import unchanged
    from benchmarks.study_report import write_study_report

    if unknown := [name for name in only if name not in (*EXPERIMENTS, *DERIVED)]:
        known = ", ".join([*EXPERIMENTS, *DERIVED])
        raise StudyError(f"--only {', '.join(unknown)}: no such experiment; there are {known}")
    only = ["rate-accuracy" if name in DERIVED else name for name in only]
    print(f"preset {study.preset.name}: {study.preset.about}", file=sys.stderr)
    _leave_a_core_free()
    keep_freed_memory()
    done = {}
    with ended_by_sigterm():
        for experiment in EXPERIMENTS.values():
            if only and experiment.name not in only:
                continue
            print(f"{experiment.name}: {experiment.about}", file=sys.stderr)
            started = time.monotonic()
            points, measured = experiment.run(study)
            done[experiment.name] = {
                "points": points,
                "measured": measured,
                "seconds": round(time.monotonic() - started, 1),
            }
        files = unchanged(study.out) or write_study_report(study.out)
    return {
        "benchmark": "study",
        "preset": study.preset.name,
        **study.context,
        "out": str(study.out),
        "experiments": done,
        "files": {name: str(path) for name, path in files.items()},
    }
