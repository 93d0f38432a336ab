"""Many codecs against each other on the same images, and one figure against another over many points. Plain functions.

Sources: Spearman 1904; the area under the
ROC curve as Mann and Whitney's statistic (Hanley and McNeil 1982).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.stats.paired import holm, mcnemar_p

RESAMPLES = 1000


@dataclass(frozen=True)
class Rate:
    """One operating point of a codec: name, mean bytes, and whether each image was right, bool (N,)."""

    name: str
    bytes_mean: float
    correct: np.ndarray


@dataclass(frozen=True)
class Duel:
    """`first` and `second` are codecs; their best rates within `budget` bytes on the same images. p is McNemar's exact
    one, p_holm corrected over all duels that were asked together."""

    budget: float
    first: str
    second: str
    rates: tuple[str, str]
    bytes_mean: tuple[float, float]
    top1: tuple[float, float]
    p: float
    p_holm: float = 1.0


def duels(codecs: Mapping[str, Sequence[Rate]], budgets: Sequence[float]) -> list[Duel]:
    """Every pair of codecs within each budget that both can meet, with Holm's correction over them all.

    Within a budget a codec is what its dearest affordable rate gives: that is what one would deploy, and choosing by
    accuracy would choose by the images that are tested. Pairs that stand at the same rates as within a smaller budget
    are not tested again.
    """
    found: list[Duel] = []
    seen = set()
    for budget in sorted(budgets):
        able = {}
        for codec, rates in codecs.items():
            if within := [rate for rate in rates if rate.bytes_mean <= budget]:
                able[codec] = max(within, key=lambda rate: rate.bytes_mean)
        for (first, a), (second, b) in itertools.combinations(able.items(), 2):
            if (first, a.name, second, b.name) in seen:
                continue
            seen.add((first, a.name, second, b.name))
            shares = float(a.correct.mean()), float(b.correct.mean())
            p = mcnemar_p(a.correct, b.correct)
            found.append(Duel(budget, first, second, (a.name, b.name), (a.bytes_mean, b.bytes_mean), shares, p))
    corrected = holm([duel.p for duel in found])
    return [Duel(**{**vars(duel), "p_holm": p}) for duel, p in zip(found, corrected)]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rho of each row, (..., P) twice → (...); NaN where one side is constant. Ties share a mean rank."""
    from scipy.stats import rankdata

    a, b = (rankdata(np.asarray(each, float), axis=-1) for each in (first, second))
    a, b = (each - each.mean(-1, keepdims=True) for each in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over points, with its 95 % interval from a bootstrap over images."""

    rho: float | None
    ci95: tuple[float, float] | None
    points: int


def correlate(metric: np.ndarray, correct: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Correlation:
    """metric, correct (P, N): a figure of each image at each point, whether it was right → mean figure against top-1.

    Each resample draws images, the same for all points, and ranks the points again. NaN in `metric` counts in no mean.
    """
    values, right = np.asarray(metric, float), np.asarray(correct, float)
    known = np.isfinite(values).any(1)
    values, right = values[known], right[known]
    if len(values) < 3:
        return Correlation(None, None, len(values))
    count = values.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    draws = np.vstack([np.ones(count), draws])
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means = (draws @ np.where(finite, values, 0).T) / (draws @ finite.T)  # (1 + R, P)
    rho = rank_correlation(means, draws @ right.T)
    kept = rho[1:][np.isfinite(rho[1:])]
    if not np.isfinite(rho[0]) or not len(kept):
        return Correlation(None, None, len(values))
    low, high = np.percentile(kept, [2.5, 97.5])
    return Correlation(float(rho[0]), (float(low), float(high)), len(values))


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Chance that a positive has the higher score of a random pair, ties half; None without both kinds.

    >>> auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    from scipy.stats import rankdata

    values, own = np.asarray(scores, float), np.asarray(positive, bool)
    known = np.isfinite(values)
    values, own = values[known], own[known]
    count = int(own.sum())
    if count in (0, len(own)):
        return None
    return float((rankdata(values)[own].sum() - count * (count + 1) / 2) / (count * (len(own) - count)))
