"""Statistics against scipy and hand values; the hull by its defining properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.stats.paired import cost_at, mcnemar_p, paired_difference, pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=40)


def pair(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    correct = [True] * both + [True] * gained + [False] * lost + [False] * neither
    reference = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return np.array(correct), np.array(reference)


@pytest.mark.parametrize(("gained", "lost"), [(0, 5), (5, 0), (3, 12), (40, 70), (1, 0)])
def test_mcnemar_is_the_sign_test_of_the_discordant_images(gained: int, lost: int):
    by_hand = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) * 2 / 2 ** (gained + lost)
    p = mcnemar_p(*pair(50, gained, lost, 20))
    assert p == pytest.approx(min(1.0, by_hand))
    assert p == pytest.approx(stats.binomtest(lost, gained + lost).pvalue)
    assert p == mcnemar_p(*pair(0, gained, lost, 3))  # images on which both agree say nothing
    if gained + lost > 100:  # where the chi-squared form with continuity correction is good
        statistic = (abs(gained - lost) - 1) ** 2 / (gained + lost)
        assert p == pytest.approx(stats.chi2.sf(statistic, 1), rel=0.1)


def test_mcnemar_without_discordant_images():
    assert mcnemar_p(*pair(10, 0, 0, 3)) == 1.0
    assert mcnemar_p(*pair(10, 4, 4, 3)) == 1.0
    with pytest.raises(ValueError, match="same images"):
        mcnemar_p(np.ones(3, bool), np.ones(4, bool))


@given(POINTS)
def test_front_is_what_no_point_beats(points):
    costs, values = [p[0] for p in points], [p[1] for p in points]
    front = pareto_front(costs, values)
    kept = [points[i] for i in front]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(kept))  # up and to the right
    for point in points:
        beaten = any(k[0] <= point[0] and k[1] >= point[1] for k in kept)
        assert beaten  # by a point kept, or it is one itself
    for k in kept:
        assert not any(p != k and p[0] <= k[0] and p[1] >= k[1] for p in points)


@given(POINTS, st.randoms())
def test_front_does_not_depend_on_the_order(points, random):
    shuffled = points[:]
    random.shuffle(shuffled)

    def front(of):
        return [of[i] for i in pareto_front([p[0] for p in of], [p[1] for p in of])]

    assert front(points) == front(shuffled)


def test_front_leaves_out_what_was_not_measured():
    nan = float("nan")
    assert pareto_front([1, nan, 2, 3], [0.5, 0.9, nan, 0.6]) == [0, 3]
    assert pareto_front([], []) == []
    with pytest.raises(ValueError, match="2 costs for 1"):
        pareto_front([1, 2], [1])


def test_cost_at_interpolates_in_log_bytes_along_the_front():
    costs, values = [1000, 100, 500, 200], [0.95, 0.6, 0.5, 0.8]  # the third is beaten and must not count
    assert cost_at(costs, values, 0.7).cost == pytest.approx(math.sqrt(100 * 200))
    assert cost_at(costs, values, 0.8).cost == pytest.approx(200)
    assert cost_at(costs, values, 0.875).cost == pytest.approx(math.sqrt(200 * 1000))
    assert cost_at(costs, values, 0.95).cost == pytest.approx(1000)


def test_cost_at_never_extrapolates():
    above = cost_at([100, 200], [0.6, 0.8], 0.5)
    assert (above.cost, above.at_most) == (100, True)
    assert not cost_at([100, 200], [0.6, 0.8], 0.6).at_most
    never = cost_at([100, 200], [0.6, 0.8], 0.9)
    assert (never.cost, never.reason) == (None, "best measured is 0.800 at 200 bytes")
    assert cost_at([], [], 0.9).reason == "nothing was measured"


@pytest.mark.parametrize(("gained", "lost"), [(30, 0), (12, 5), (0, 9), (7, 7)])
def test_a_paired_difference_is_the_bootstrap_over_images(gained, lost):
    correct, other = pair(40, gained, lost, 30)
    difference, (low, high) = paired_difference(correct, other)
    assert difference == pytest.approx(correct.mean() - other.mean())
    assert low <= difference <= high
    one_by_one = [
        (correct[index].mean() - other[index].mean())
        for index in np.random.default_rng(1).integers(0, len(correct), (2000, len(correct)))
    ]
    assert (low, high) == pytest.approx(np.percentile(one_by_one, [2.5, 97.5]), abs=0.02)
    with pytest.raises(ValueError, match="same images"):
        paired_difference(correct, other[1:])
