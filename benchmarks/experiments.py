"""The experiments of a study, in the order in which they run. A new one is a line in `EXPERIMENTS`.

An experiment measures what its points in OUT/NAME lack and says how many there are and how many it measured; its
section of the report is made from those files alone (`benchmarks.study_report.SECTIONS`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.study import Study


@dataclass(frozen=True)
class Experiment:
    """run: measures what is missing; returns (points there are, points measured now)."""

    name: str
    about: str
    run: Callable[[Study], tuple[int, int]]


def _examples(study: Study) -> tuple[int, int]:
    from benchmarks.examples import run_examples

    return run_examples(study)


def _rate_accuracy(study: Study) -> tuple[int, int]:
    from benchmarks.progress import progress_bar
    from benchmarks.rate_accuracy import NAME, RateAccuracy

    points = measured = 0
    for data in study.datasets():
        for clip in study.clips:
            with progress_bar(f"{data.name}, {clip}") as progress:
                run = RateAccuracy(
                    data,
                    study.judge(clip),
                    clip,
                    study.prompts(data),
                    study.seed,
                    study.store(NAME),
                    study.preset.grid,
                    progress=progress,
                )
                points += len(run.run(study.families_of(clip), study.peers))
                measured += run.measured
    return points, measured


def _latency(study: Study) -> tuple[int, int]:
    from benchmarks.timing_study import study_latency

    return study_latency(study)


def _throughput(study: Study) -> tuple[int, int]:
    from benchmarks.timing_study import study_throughput

    return study_throughput(study)


def _energy(study: Study) -> tuple[int, int]:
    from benchmarks.timing_study import study_energy

    return study_energy(study)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("examples", "photographs as the cloud sees them", _examples),
        Experiment("rate-accuracy", "accuracy against bytes, families and peers", _rate_accuracy),
        Experiment("latency", "image to answer over emulated links", _latency),
        Experiment("throughput", "the saturated service against the bare model", _throughput),
        Experiment("energy", "joules or CPU-seconds an image, on the edge and in the cloud", _energy),
    )
}
