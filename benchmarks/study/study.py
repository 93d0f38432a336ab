"""`thinwire-bench study`: every experiment of a preset, resumable, and the report of what has been measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.codecs.grid import FIXED_RUNGS, QUICK_GRID, PeerGrid
from benchmarks.data.sets import DataError, Dataset, find_datasets, load_dataset
from benchmarks.results.store import PointStore
from thinwire.errors import ThinwireError
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from benchmarks.codecs.peers import Peer
    from benchmarks.judges.judge import Judge
    from benchmarks.judges.panel import Panel
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
            "100 images of two sets, 4 points a peer; some 30 minutes on 2 idle cores, 9 of them for latency",
        ),
        Preset(
            "full",
            {},
            None,
            FIXED_RUNGS,
            "every image of every set, about 10 points a peer; estimated at 6 hours on 2 idle cores for four packs",
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
    judges: Sequence[str] = ()  # networks beside the CLIPs, as `benchmarks.judges.panel` names them
    blip: str | None = None  # a BLIP image-text matching model: folder or hub name
    _judges: dict[str, Judge] = field(default_factory=dict)

    def store(self, experiment: str) -> PointStore:
        return PointStore(self.out, experiment, self.context, self.skip_existing)

    def judge(self, clip: str) -> Judge:
        """Each CLIP is loaded once for all experiments."""
        from benchmarks.judges.judge import Judge

        if clip not in self._judges:
            self._judges[clip] = Judge(clip)
        return self._judges[clip]

    def panel(self, data: Dataset) -> Panel:
        """The judges of accuracy experiments. Raises `JudgeUnavailable`."""
        from benchmarks.judges.panel import Panel

        return Panel.load(self.judges, data, next(iter(self.prompts(data))), self.out / "judges")

    def families_of(self, clip: str) -> list[Bundle]:
        """Bundles that this CLIP can serve: one that decodes into another CLIP's space is left out, and named."""
        from cloud.errors import ClipMismatch
        from cloud.networks.runtime import check_clip

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
            raise DataError(f"{self.data_dir}: contains no labelled data set; docs/benchmarks.md shows the layouts")
        counts = {name: count if most is None else min(count or most, most) for name, count in wanted.items()}
        return [load_dataset(found[name], count, self.seed) for name, count in counts.items()]

    def prompts(self, data: Dataset) -> dict[str, tuple[str, ...]]:
        """Named templates, the default first (it is what the service is asked); a set's own as `own`."""
        own = {"own": data.templates} if data.templates else {}
        return {name: PROMPT_SETS[name] for name in ("7", "1", "80")} | own
