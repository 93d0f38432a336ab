"""The critical rate on simulated curves whose knee is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stats.critical_rate import find_knee, fit_segments, knee_ratio

SHAPES = ((6, 300, 0.10), (9, 300, 0.15), (9, 100, 0.15), (9, 200, 0.08), (12, 400, 0.15))  # rates, images, slope


def simulate(rng, rates: int, images: int, slope: float, knee: float, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (K,) and correct (K, N). `shared`: of the images whose luck is the same at every rate."""
    x = np.linspace(5, 12, rates)
    expected = np.clip(0.8 - slope * np.maximum(0, knee - x), 0, 1)
    same = rng.uniform(size=(1, images)) < shared
    luck = np.where(same, rng.uniform(size=(1, images)), rng.uniform(size=(rates, images)))
    return 2**x, luck < expected[:, None]


def test_the_interval_holds_the_true_knee():
    rng = np.random.default_rng(0)
    held, missing = [], 0
    for number in range(600):
        knee = rng.uniform(7, 10)
        sizes, right = simulate(rng, *SHAPES[number % len(SHAPES)], knee, rng.uniform())
        found = find_knee(sizes, right, number, 300)
        if found.bytes is None:
            missing += 1
            continue
        low, high = found.ci95
        held.append((found.open_low or low <= 2**knee) and (found.open_high or 2**knee <= high))
        assert low <= found.bytes <= high or found.open_low or found.open_high or low <= found.bytes * 1.1
    assert missing < 12
    assert np.mean(held) >= 0.95


def test_a_known_curve_is_found_exactly():
    x = np.array([5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    knees, plateaus, slopes = fit_segments(x, np.array([0.9 - 0.1 * np.maximum(0, 7.5 - x), np.full(6, 0.5)]))
    assert knees[0] == pytest.approx(7.5, abs=0.03)
    assert (plateaus[0], slopes[0]) == (pytest.approx(0.9, abs=0.005), pytest.approx(0.1, abs=0.005))
    assert (plateaus[1], slopes[1]) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-9))


def test_the_order_of_rates_does_not_matter():
    sizes, right = simulate(np.random.default_rng(3), 8, 200, 0.12, 8.0, 0.5)
    order = np.random.default_rng(4).permutation(8)
    assert find_knee(sizes[order], right[order]) == find_knee(sizes, right)


def test_what_has_no_knee_says_why():
    rng = np.random.default_rng(1)
    level = rng.uniform(size=(6, 200)) < 0.7
    sizes = 2.0 ** np.arange(5, 11)
    assert "does not fall" in find_knee(sizes, level).reason
    rising = np.arange(200)[None] < np.arange(1, 7)[:, None] * 30  # as steep at the end as at the beginning
    assert "still rises" in find_knee(sizes, rising).reason
    assert "3 rates" in find_knee(sizes[:3], level[:3]).reason


def test_the_ratio_of_two_knees():
    rng = np.random.default_rng(5)
    held = 0
    for number in range(100):
        luck = rng.uniform(size=(1, 300))
        x = np.linspace(5, 12, 10)
        first, second = (luck < (0.8 - 0.15 * np.maximum(0, knee - x))[:, None] for knee in (9.0, 8.0))
        ratio, (low, high) = knee_ratio(2**x, first, 2**x, second, number, 200)
        held += low <= 2 <= high
        assert 1.2 < ratio < 3.5
    assert held >= 93
    assert knee_ratio(2**x, first, 2 ** x[:3], second[:3]) is None
    with pytest.raises(ValueError, match="same images"):
        knee_ratio(2**x, first, 2**x, second[:, :50])
