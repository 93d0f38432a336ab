"""Coarse and fine: which classes belong together, what survives when the fine answer is lost. Plain functions.

A hierarchy is a JSON file {"coarse": ["fine", ...], ...} over the labels of a data set: those in the
folder hierarchies here (made by hand, after WordNet's upper nouns), and any in OUT/hierarchies of a study.
"""

from __future__ import annotations

import collections
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results.store import ResultsError

LISTED = 10


def find_hierarchy(labels: Sequence[str], out: Path | None = None) -> dict[str, str] | None:
    """fine → coarse for the first file that knows every label, the study's own before ours; None where none does.

    Raises `ResultsError` for a file in OUT/hierarchies that is not a hierarchy.
    """
    own = sorted((out / "hierarchies").glob("*.json")) if out is not None else []
    shipped = importlib.resources.files("benchmarks.results").joinpath("hierarchies")
    for path in [*own, *sorted(shipped.iterdir(), key=lambda each: each.name)]:
        if not path.name.endswith(".json"):
            continue
        try:
            coarse_of = {
                fine: coarse for coarse, members in json.loads(path.read_text("utf-8")).items() for fine in members
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise ResultsError(f'{path}: is not a hierarchy {{"coarse": ["fine", ...]}} ({error})') from error
        if set(labels) <= set(coarse_of):
            return {label: coarse_of[label] for label in labels}
    return None


@dataclass(frozen=True)
class Survival:
    """Of images that were right uncompressed and are wrong now (`lost`): how many keep their coarse class.

    share: kept / lost, None where nothing was lost; chance: what the same wrong answers would keep if each were drawn
    from the other labels alike; coarse_top1, fine_top1: shares of all images whose answer is right at each level.
    """

    lost: int
    kept: int
    share: float | None
    chance: float | None
    fine_top1: float
    coarse_top1: float


def survival(
    answers: Sequence[int | None], reference: Sequence[int | None], targets: Sequence[int], coarse: Sequence[int]
) -> Survival:
    """answers, reference: predicted label of each image (None: no answer); coarse: the coarse class of each label.

    >>> survival([1, 2, 0, 3], [0, 0, 0, 3], [0, 0, 0, 3], [0, 0, 1, 1])
    Survival(lost=2, kept=1, share=0.5, chance=0.3333333333333333, fine_top1=0.5, coarse_top1=0.75)
    """
    groups = collections.Counter(coarse)
    lost = kept = 0
    chance = 0.0
    for answer, before, target in zip(answers, reference, targets):
        if before == target and answer != target:
            lost += 1
            kept += answer is not None and coarse[answer] == coarse[target]
            chance += (groups[coarse[target]] - 1) / (len(coarse) - 1)
    right = [answer == target for answer, target in zip(answers, targets)]
    near = [answer is not None and coarse[answer] == coarse[target] for answer, target in zip(answers, targets)]
    shares = (kept / lost, chance / lost) if lost else (None, None)
    return Survival(lost, kept, *shares, float(np.mean(right)), float(np.mean(near)))


def new_confusions(
    answers: Sequence[int | None], reference: Sequence[int | None], targets: Sequence[int]
) -> collections.Counter[tuple[int, int]]:
    """(true label, wrong answer) of images that were right uncompressed: confusions that compression created."""
    return collections.Counter(
        (target, answer)
        for answer, before, target in zip(answers, reference, targets)
        if before == target and answer not in (target, None)
    )


def losses_by_class(
    answers: Sequence[int | None], reference: Sequence[int | None], targets: Sequence[int]
) -> Mapping[int, tuple[int, int]]:
    """True label → (images right uncompressed, of them lost)."""
    found: dict[int, tuple[int, int]] = {}
    for answer, before, target in zip(answers, reference, targets):
        if before == target:
            had, lost = found.get(target, (0, 0))
            found[target] = had + 1, lost + (answer != target)
    return found
