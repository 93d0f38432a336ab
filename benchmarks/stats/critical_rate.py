"""The critical rate: the bytes below which accuracy falls. Plain functions of numbers.

Method: segmented regression (V. M. R. Muggeo, "Estimating regression models with unknown break-points", 2003) of
accuracy on log2(bytes) with two joined pieces, of which the upper one is level:

    accuracy(x) = plateau - slope * max(0, knee - x),    x = log2(bytes), slope >= 0

The upper piece is level because a codec with bytes enough ends at what the uncompressed image gives. The knee is found
by least squares on a fine grid, for each resample of the images. Beside it
stands another reading of the same curve: the bytes at which 95 % of the uncompressed accuracy is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
GRID = 160
MIN_POINTS = 4  # three parameters
MIN_FALL = 0.02
"""Of accuracy, from the plateau to the cheapest point: over less, a knee is noise."""

TAILS = (1.0, 99.0)
"""Percentiles of the bootstrapped knees that make the 95 % interval. Plain 2.5 and 97.5 held the true knee of simulated
curves in 93 to 97 %, below 95 with nine rates of 300 images: the knee moves in jumps between the rates. These hold it
in 95 % and more over all simulations together (test_critical_rate.py): most intervals are a little too wide."""


@dataclass(frozen=True)
class Knee:
    """bytes: the critical rate; None with a `reason`. ci95: its bootstrap interval; open_low, open_high: the interval
    ends where the measured range does, so the truth may lie beyond. plateau: accuracy above the knee; slope: accuracy
    lost by halving the bytes below it."""

    bytes: float | None
    ci95: tuple[float, float] | None = None
    open_low: bool = False
    open_high: bool = False
    plateau: float | None = None
    slope: float | None = None
    reason: str | None = None


def find_knee(sizes: Sequence[float], correct: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Knee:
    """Mean bytes of K rates, bool (K, N) whether each of N images was right at each rate → the critical rate.

    >>> sizes, hits = [32, 64, 128, 256, 512, 1024, 2048], [40, 80, 120, 160, 160, 160, 160]
    >>> right = np.arange(200) < np.array(hits)[:, None]
    >>> round(find_knee(sizes, right).bytes)
    256
    """
    x, shares = _curves(sizes, correct, seed, resamples)
    if len(x) < MIN_POINTS:
        return Knee(None, reason=f"{len(x)} rates: a knee needs {MIN_POINTS}")
    knees, plateaus, slopes = fit_segments(x, shares)
    fall = slopes * np.maximum(0, knees - x[0])
    if fall[0] < MIN_FALL or np.percentile(fall[1:], 2.5) <= 0:
        return Knee(None, plateau=float(plateaus[0]), reason="accuracy does not fall within the bytes measured")
    if knees[0] >= x[-2] - 1e-9:
        return Knee(None, reason="accuracy still rises at the most bytes measured")
    low, high = np.percentile(knees[1:], TAILS)
    ends = (float(2**low), float(2**high))
    step = (x[-2] - x[0]) / GRID
    return Knee(
        float(2 ** knees[0]),
        ends,
        bool(low <= x[0] + 1.5 * step),
        bool(high >= x[-2] - 0.5 * step),
        float(plateaus[0]),
        float(slopes[0]),
    )


def knee_ratio(
    sizes: Sequence[float],
    correct: np.ndarray,
    other_sizes: Sequence[float],
    other_correct: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, tuple[float, float]] | None:
    """How many times the other curve's critical rate the first one's is, on the same images in the same order.

    With its interval; resamples are paired. None where either curve has no knee.
    """
    if correct.shape[1] != other_correct.shape[1]:
        raise ValueError(f"a paired comparison needs the same images: {correct.shape[1]} and {other_correct.shape[1]}")
    pairs = ((sizes, correct), (other_sizes, other_correct))
    if any(find_knee(*pair, seed, resamples).bytes is None for pair in pairs):
        return None
    first, second = (fit_segments(*_curves(*pair, seed, resamples))[0] for pair in pairs)
    low, high = np.percentile((first - second)[1:], TAILS)
    return float(2 ** (first[0] - second[0])), (float(2**low), float(2**high))


def _curves(sizes: Sequence[float], correct: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """(log2 bytes rising (K,), accuracies (1 + R, K)): the images as they are, then as they are drawn."""
    order = np.argsort(sizes)
    x = np.log2(np.asarray(sizes, float)[order])
    right = np.asarray(correct, float)[order]
    keep = np.r_[True, np.diff(x) > 1e-9]  # two rates of one size are one point of the curve
    x, right = x[keep], right[keep]
    count = right.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples) / count
    return x, np.vstack([right.mean(1), draws @ right.T])


def fit_segments(x: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rising x (K,), accuracies (R, K) → knee, plateau and slope of each row, (R,) each, by least squares.

    The knee lies above the first point and has two points at or beyond it.
    """
    knees = np.linspace(x[0], x[-2], GRID + 1)[1:]  # (G,)
    below = np.maximum(0, knees[:, None] - x)  # (G, K): how far each point lies under each knee
    centred = below - below.mean(1, keepdims=True)
    spread = (centred**2).sum(1)  # (G,)
    slopes = np.maximum(0, -(shares @ centred.T) / spread)  # (R, G)
    total = ((shares - shares.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True)
    # Of a slope that was cut to 0 nothing is explained
    left = total + 2 * slopes * (shares @ centred.T) + slopes**2 * spread
    best = left.argmin(1)
    rows = np.arange(len(shares))
    slope = slopes[rows, best]
    plateau = shares.mean(1) + slope * below[best].mean(1)
    return knees[best], plateau, slope
