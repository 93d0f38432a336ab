"""Bytes saved at equal accuracy, averaged over the accuracies that both codecs reach (after Bjøntegaard, VCEG-M33).

Bjøntegaard's delta rate is made for PSNR curves; here the quality axis is top-1 and the curve a codec's Pareto front.
The `bjontegaard` package interpolates log(bytes) as a function of accuracy by piecewise cubic Hermite polynomials
(pchip), which, unlike the original cubic fit, cannot overshoot between points.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.results.rows import correct
from benchmarks.stats.paired import pareto_front

RESAMPLES = 200
MIN_OVERLAP = 0.02
"""Of top-1. Over a narrower range an average says nothing."""
Matrices = tuple[np.ndarray, np.ndarray]
"""(bytes, correct) of a curve's points, both float (P, N); NaN bytes for a failed image."""


@dataclass(frozen=True)
class Saving:
    """saving: share of the peer's bytes that the family does without, below 0 where it needs more; None with a reason.

    between: the top-1 range over which both were compared; ci95: paired bootstrap over images, fronts chosen again.
    """

    saving: float | None
    ci95: tuple[float, float] | None = None
    between: tuple[float, float] | None = None
    reason: str | None = None


def rate_saving(
    sizes: Sequence[float], values: Sequence[float], peer_sizes: Sequence[float], peer_values: Sequence[float]
) -> Saving:
    """Of one curve against another, each (bytes, accuracy) in any order.

    >>> round(rate_saving([50, 100, 200], [0.5, 0.7, 0.8], [100, 200, 400], [0.5, 0.7, 0.8]).saving, 6)
    0.5
    """
    from bjontegaard import bd_rate

    own = [(sizes[i], values[i]) for i in pareto_front(sizes, values)]
    peer = [(peer_sizes[i], peer_values[i]) for i in pareto_front(peer_sizes, peer_values)]
    if len(own) < 2 or len(peer) < 2:
        return Saving(None, reason="a curve has fewer than two points")
    low, high = max(own[0][1], peer[0][1]), min(own[-1][1], peer[-1][1])
    if high - low < MIN_OVERLAP:
        return Saving(None, reason=f"the curves share less than {MIN_OVERLAP:g} of top-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of small overlaps; `between` tells them
        change = bd_rate(*zip(*peer), *zip(*own), method="pchip", require_matching_points=False, min_overlap=0)
    return Saving(-float(change) / 100, between=(low, high))


def saving_of(
    family: Sequence[dict[str, Any]], peer: Sequence[dict[str, Any]], prompt_set: str, seed: int = 0
) -> Saving:
    """The points of a family against those of a peer, on the same images, with a paired bootstrap interval."""
    return saving_between(_matrices(family, prompt_set), _matrices(peer, prompt_set), seed)


def saving_between(own: Matrices, other: Matrices, seed: int = 0) -> Saving:
    """The same of what points hold."""
    told = rate_saving(*_curve(own), *_curve(other))
    if told.saving is None:
        return told
    count = own[0].shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # (R, N)
    again = [rate_saving(*_curve(own, draw), *_curve(other, draw)).saving for draw in draws]
    kept = [each for each in again if each is not None]
    if len(kept) < 0.9 * RESAMPLES:  # an interval of those resamples alone that have an overlap would be too narrow
        return Saving(told.saving, None, told.between, "too little overlap for an interval")
    low, high = np.percentile(kept, [2.5, 97.5])
    return Saving(told.saving, (float(low), float(high)), told.between)


def _matrices(points: Sequence[dict[str, Any]], prompt_set: str) -> Matrices:
    sizes = [[np.nan if size is None else size for size in point["images"]["packet_bytes"]] for point in points]
    return np.array(sizes, float), np.array([correct(point, prompt_set) for point in points], float)


def _curve(matrices: Matrices, counts: np.ndarray | None = None) -> tuple[list, list]:
    """Mean bytes and accuracy of each point, over images drawn `counts` times (None: once each)."""
    sizes, right = matrices
    weights = np.ones(sizes.shape[1]) if counts is None else counts
    arrived = np.isfinite(sizes) * weights
    with np.errstate(invalid="ignore"):
        means = (np.nan_to_num(sizes) * weights).sum(1) / arrived.sum(1)
    return means.tolist(), ((right * weights).sum(1) / weights.sum()).tolist()
