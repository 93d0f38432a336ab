"""Is an answer as often right as its probability says? Plain functions of numbers.

Expected calibration error: Naeini, Cooper, Hauskrecht 2015; Guo, Pleiss, Sun, Weinberger 2017 ("On Calibration of
Modern Neural Networks"), equation 3, with 15 bins of equal width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
RESAMPLES = 1000


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: images whose probability lies in (low, high], and what became of them."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(probabilities: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Top-1 probabilities (N,) in [0, 1] and whether each answer was right → the bars, empty ones included."""
    chances, right = np.asarray(probabilities, float), np.asarray(correct, bool)
    places = _places(chances, bins)
    found = []
    for place in range(bins):
        own = places == place
        told = (None, None) if not own.any() else (float(chances[own].mean()), float(right[own].mean()))
        found.append(Bin(place / bins, (place + 1) / bins, int(own.sum()), *told))
    return found


def expected_calibration_error(probabilities: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """Mean over images of |accuracy - mean probability| of their bin, 0 to 1; NaN without images.

    >>> round(expected_calibration_error([0.9, 0.9, 0.1, 0.1], [True, True, False, True]), 3)
    0.25
    """
    chances, right = np.asarray(probabilities, float), np.asarray(correct, float)
    return float(_errors(chances, right, np.ones((1, len(chances))), bins)[0])


def calibration_interval(
    probabilities: Sequence[float], correct: Sequence[bool], seed: int = 0, bins: int = BINS
) -> tuple[float, float]:
    """95 % interval from a bootstrap over images, reflected at the estimate and cut at 0.

    Each resample errs upwards from the sample as the sample does from the truth (bins of few images are never flat), so
    plain percentiles would leave out the estimate itself; reflecting (the "basic" bootstrap) takes that off.
    """
    chances, right = np.asarray(probabilities, float), np.asarray(correct, float)
    count = len(chances)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    told = expected_calibration_error(chances, right, bins)
    low, high = np.percentile(_errors(chances, right, draws, bins), [2.5, 97.5])
    return max(0.0, 2 * told - float(high)), max(0.0, 2 * told - float(low))


def _places(chances: np.ndarray, bins: int) -> np.ndarray:
    """Which bin (low, high] each lies in; 0 belongs to the first."""
    return np.clip(np.ceil(chances * bins).astype(int) - 1, 0, bins - 1)


def _errors(chances: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """weights (R, N) → the error of each row."""
    inside = (_places(chances, bins)[:, None] == np.arange(bins)).astype(float)  # (N, B)
    gaps = np.abs(weights @ (inside * (right - chances)[:, None]))  # (R, B): |sum of right - sum of probability|
    with np.errstate(invalid="ignore"):
        return gaps.sum(1) / weights.sum(1)
