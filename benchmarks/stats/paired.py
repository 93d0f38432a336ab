"""Paired significance, Pareto fronts and what is read off a rate-accuracy curve. Plain functions of numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 2000


def mcnemar_p(correct: np.ndarray, reference: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test: are two ways of looking at the same images equally often right?

    correct, reference: bool (N,). Only images that one gets right and the other wrong tell; under the hypothesis they
    fall to either side like a fair coin. Exact at any count, where the chi-squared form is not.

    >>> mcnemar_p(np.array([1, 0, 0, 0, 0, 0], bool), np.array([1, 1, 1, 1, 1, 1], bool))  # 0 against 5: 2 / 2**5
    0.0625
    """
    if correct.shape != reference.shape:
        raise ValueError(f"a paired comparison needs the same images: {correct.shape} and {reference.shape}")
    gained, lost = int((correct & ~reference).sum()), int((reference & ~correct).sum())
    if gained == lost:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats, from cheap to dear: the upper-left hull of (cost, value).

    Each point kept is worth strictly more than every cheaper one. Points with a NaN are never kept; of equal points the
    first is.

    >>> pareto_front([300, 100, 200, 250], [0.9, 0.5, 0.8, 0.7])
    [1, 2, 0]
    """
    if len(costs) != len(values):
        raise ValueError(f"{len(costs)} costs for {len(values)} values")
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    front: list[int] = []
    best = -math.inf
    for index in order:
        if math.isfinite(costs[index]) and values[index] > best:
            front.append(index)
            best = values[index]
    return front


@dataclass(frozen=True)
class Crossing:
    """Where a curve first reaches a level. `at_most`: its cheapest point is above already, so the truth may be less.

    `cost` is None when the level is not reached; `reason` then says how far the curve came.
    """

    cost: float | None
    at_most: bool = False
    reason: str | None = None


def cost_at(costs: Sequence[float], values: Sequence[float], level: float) -> Crossing:
    """The cost at which the Pareto front reaches `level`, linear in log(cost) between its points; never extrapolated.

    >>> round(cost_at([100, 400], [0.8, 1.0], 0.9).cost)
    200
    >>> cost_at([100, 400], [0.8, 0.85], 0.9).reason
    'best measured is 0.850 at 400 bytes'
    """
    front = pareto_front(costs, values)
    if not front:
        return Crossing(None, reason="nothing was measured")
    if values[front[0]] >= level:
        return Crossing(float(costs[front[0]]), at_most=values[front[0]] > level)
    for low, high in itertools.pairwise(front):
        if values[high] >= level:
            share = (level - values[low]) / (values[high] - values[low])
            return Crossing(math.exp((1 - share) * math.log(costs[low]) + share * math.log(costs[high])))
    best = front[-1]
    return Crossing(None, reason=f"best measured is {values[best]:.3f} at {costs[best]:.0f} bytes")


def paired_difference(
    first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = BOOTSTRAP_RESAMPLES
) -> tuple[float, tuple[float, float]]:
    """Mean of `first` minus mean of `second`, with its 95 % percentile interval from a paired bootstrap over images.

    first, second: bool or float (N,), the same images in the same order. A resample is fixed by how often it holds each
    value of the difference, and these counts are multinomial: the same distribution as drawing the images one by one.

    >>> paired_difference(np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool))[0]
    0.25
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"a paired comparison needs the same images: {first.shape} and {second.shape}")
    values, counts = np.unique(np.asarray(first, float) - second, return_counts=True)  # (U,) each
    drawn = np.random.default_rng(seed).multinomial(len(first), counts / len(first), resamples)  # (resamples, U)
    low, high = np.percentile(drawn @ values / len(first), [2.5, 97.5])
    return float(values @ counts / len(first)), (float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests by Holm's step-down procedure (Holm 1979), in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def hits(predictions: Sequence[Sequence[str]], targets: Sequence[str], k: int) -> np.ndarray:
    """bool (N,): whether the true label is among the first k predicted. An image without an answer is a miss."""
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    return np.array([target in ranked[:k] for ranked, target in zip(predictions, targets)], dtype=bool)


def mean_per_class_recall(correct: np.ndarray, targets: Sequence[str]) -> float | None:
    """Mean over the classes that occur of the share of their images that is right, 0 to 1; None without images."""
    names = np.asarray(targets)
    recalls = [correct[names == name].mean() for name in np.unique(names)]
    return float(np.mean(recalls)) if recalls else None


def relative_top1(
    correct: np.ndarray, reference: np.ndarray, seed: int = 0, resamples: int = BOOTSTRAP_RESAMPLES
) -> tuple[float | None, tuple[float, float] | None]:
    """top-1 over the reference's top-1, with its 95% interval from a paired bootstrap over images.

    correct, reference: bool (N,), the same images in the same order. Each resample draws images, not results, so that
    what both find hard cancels out. None where the reference gets nothing right (resamples like that are left out).
    """
    if correct.shape != reference.shape:
        raise ValueError(f"a paired comparison needs the same images: {correct.shape} and {reference.shape}")
    if not reference.any():
        return None, None
    # An image is one of four kinds, so how many of each a resample holds is multinomial: the same distribution as
    # drawing the images one by one, without 2,000 arrays of N.
    kinds = [(correct & reference).sum(), (correct & ~reference).sum(), (~correct & reference).sum()]
    shares = np.array([*kinds, len(correct) - sum(kinds)]) / len(correct)
    both, gained, lost, _ = np.random.default_rng(seed).multinomial(len(correct), shares, resamples).T  # (resamples,)
    base = both + lost
    ratios = (both + gained)[base > 0] / base[base > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(correct.sum() / reference.sum()), (float(low), float(high))
