"""Accuracy against bytes: on the labelled sets of the study, and on sets of other domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.codecs.peers import Peer
    from benchmarks.data.sets import Dataset
    from benchmarks.study.study import Study


def run_rate_accuracy(study: Study) -> tuple[int, int]:
    """Experiment rate-accuracy: returns (points there are, points measured now)."""
    from benchmarks.accuracy.rate_accuracy import NAME

    return _accuracy(study, NAME, study.datasets(), study.peers)


def run_domains(study: Study) -> tuple[int, int]:
    """Experiment domains: returns (points there are, points measured now)."""
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
                    panel=study.panel(data),
                    progress=progress,
                    perceptual=perceptual,
                )
                points += len(run.run(study.families_of(clip), peers))
                measured += run.measured
    return points, measured
