"""The experiments of a study, in the order in which they run. A new one is a line in `EXPERIMENTS`.

An experiment measures what its points in OUT/NAME lack and says how many there are and how many it measured; its
section of the report is made from those files alone (`benchmarks.report.page.SECTIONS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.codecs.peers import Peer
    from benchmarks.data.sets import Dataset
    from benchmarks.study.study import Study


@dataclass(frozen=True)
class Experiment:
    """run: measures what is missing; returns (points there are, points measured now)."""

    name: str
    about: str
    run: Callable[[Study], tuple[int, int]]


DERIVED = ("critical-rate", "models", "architecture", "predictors", "hierarchy", "prompts", "calibration")
"""Names that --only takes too: sections of the report that need the points of rate-accuracy and nothing else."""


def _examples(study: Study) -> tuple[int, int]:
    from benchmarks.study.examples import run_examples

    return run_examples(study)


def _rate_accuracy(study: Study) -> tuple[int, int]:
    from benchmarks.accuracy.rate_accuracy import NAME

    return _accuracy(study, NAME, study.datasets(), study.peers)


def _domains(study: Study) -> tuple[int, int]:
    from benchmarks.study.domains import NAME, PEERS, domain_sets

    return _accuracy(study, NAME, domain_sets(study), [peer for peer in study.peers if peer.name in PEERS])


def _accuracy(study: Study, name: str, sets: Sequence[Dataset], peers: Sequence[Peer]) -> tuple[int, int]:
    """Points of the rate-accuracy kind, kept as those of experiment `name`."""
    from benchmarks.accuracy.rate_accuracy import RateAccuracy
    from benchmarks.judges.perceptual import perceptual_maker
    from benchmarks.results.progress import progress_bar

    perceptual = perceptual_maker()
    points = measured = 0
    for data in sets:
        for clip in study.clips:
            with progress_bar(f"{data.name}, {clip}") as progress:
                run = RateAccuracy(
                    data,
                    study.judge(clip),
                    clip,
                    study.prompts(data),
                    study.seed,
                    study.store(name),
                    study.preset.grid,
                    progress=progress,
                    perceptual=perceptual,
                )
                points += len(run.run(study.families_of(clip), peers))
                measured += run.measured
    return points, measured


def _latency(study: Study) -> tuple[int, int]:
    from benchmarks.study.timing import study_latency

    return study_latency(study)


def _throughput(study: Study) -> tuple[int, int]:
    from benchmarks.study.timing import study_throughput

    return study_throughput(study)


def _energy(study: Study) -> tuple[int, int]:
    from benchmarks.study.timing import study_energy

    return study_energy(study)


def _linear_probe(study: Study) -> tuple[int, int]:
    from benchmarks.study.linear_probe import run_linear_probe

    return run_linear_probe(study)


def _retrieval(study: Study) -> tuple[int, int]:
    from benchmarks.study.retrieval import run_retrieval

    return run_retrieval(study)


def _tricks(study: Study) -> tuple[int, int]:
    from benchmarks.study.tricks import run_tricks

    return run_tricks(study)


def _blip(study: Study) -> tuple[int, int]:
    from benchmarks.study.blip import run_blip

    return run_blip(study)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("examples", "photographs as the cloud sees them", _examples),
        Experiment("rate-accuracy", "accuracy against bytes, families and peers", _rate_accuracy),
        Experiment("domains", "the same on scenes, textures and --domain folders", _domains),
        Experiment("linear-probe", "logistic regression on CLIP's vectors, of originals and decoded", _linear_probe),
        Experiment("retrieval", "captions and images, originals against decoded", _retrieval),
        Experiment("tricks", "what the cloud could do to a decoded picture", _tricks),
        Experiment("blip", "BLIP image-text matching, where --blip gives weights", _blip),
        Experiment("latency", "image to answer over emulated links", _latency),
        Experiment("throughput", "the saturated service against the bare model", _throughput),
        Experiment("energy", "joules or CPU-seconds an image, on the edge and in the cloud", _energy),
    )
}
