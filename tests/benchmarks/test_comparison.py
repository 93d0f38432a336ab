"""Corrections, correlations and calibration against scipy, statsmodels, scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.stats.comparison import Rate, auc, correlate, duels, rank_correlation
from benchmarks.stats.paired import holm, mcnemar_p, paired_difference
from benchmarks.stats.reliability import calibration_interval, expected_calibration_error, reliability


def test_holm_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        p = np.r_[rng.uniform(size=count) ** 3, 1.0]
        assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_mcnemar_is_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.1, 0.3):
        a, b = rng.uniform(size=(2, 80)) < np.array([[0.6], [0.6 - shift]])
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert mcnemar_p(a, b) == pytest.approx(tables.mcnemar(table, exact=True).pvalue)


def test_rank_correlation_is_scipy():
    rng = np.random.default_rng(2)
    first = np.round(rng.normal(size=(5, 30)), 1)  # with ties
    second = first + rng.normal(size=(5, 30)) * np.arange(5)[:, None]
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second)]
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4)))


def test_correlation_of_points_with_a_known_answer():
    rng = np.random.default_rng(3)
    level = np.linspace(0.2, 0.9, 12)[:, None]
    right = rng.uniform(size=(12, 400)) < level
    follows = correlate(level + rng.normal(size=(12, 400)) * 0.05, right)
    assert follows.rho > 0.95
    assert follows.ci95[0] <= follows.rho <= follows.ci95[1] <= 1
    assert correlate(-level + rng.normal(size=(12, 400)) * 0.05, right).rho < -0.95
    broken = level + np.zeros((12, 400))
    broken[:3] = np.nan  # three codecs without this figure
    assert correlate(broken, right).points == 9
    assert correlate(broken[:5], right[:5]).rho is None
    chance = [
        correlate(rng.normal(size=(30, 50)), rng.uniform(size=(30, 50)) < 0.5, resamples=50).rho for _ in range(60)
    ]
    assert abs(np.mean(chance)) < 0.1


def test_auc_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    scores, own = np.round(rng.normal(size=200), 1), rng.uniform(size=200) < 0.3
    assert auc(scores, own) == pytest.approx(metrics.roc_auc_score(own, scores))
    assert auc([1.0, 2.0], [True, True]) is None
    assert auc([np.nan, 1.0, 2.0], [False, False, True]) == 1.0


def test_paired_difference_covers_the_truth():
    rng = np.random.default_rng(5)
    held = 0
    for number in range(300):
        _, (low, high) = paired_difference(rng.normal(0.1, 1, 150), np.zeros(150), number, 400)
        held += low <= 0.1 <= high
    assert held / 300 == pytest.approx(0.945, abs=0.03)


def test_duels_take_the_dearest_rate_within_a_budget():
    images = np.arange(100)

    def at(name, size, share):
        return Rate(name, size, images < share)

    codecs = {"a": [at("low", 90, 40), at("high", 300, 80)], "b": [at("low", 80, 20), at("high", 500, 85)]}
    found = duels(codecs, (100, 400, 600))
    assert [(d.budget, d.rates) for d in found] == [
        (100, ("low", "low")),
        (400, ("high", "low")),
        (600, ("high", "high")),
    ]
    assert found[0].top1 == (0.4, 0.2)
    assert found[0].p == pytest.approx(2 / 2**20)
    assert [d.p_holm for d in found] == pytest.approx(holm([d.p for d in found]))
    assert duels(codecs, (50,)) == []


def test_calibration_error_is_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    import torch

    rng = np.random.default_rng(6)
    for count in (20, 500):
        logits = rng.normal(size=(count, 6)) * 2
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        targets = rng.integers(0, 6, count)
        theirs = classification.MulticlassCalibrationError(6, n_bins=15, norm="l1")
        wanted = float(theirs(torch.from_numpy(chances), torch.from_numpy(targets)))
        top, right = chances.max(1), chances.argmax(1) == targets
        assert expected_calibration_error(top, right) == pytest.approx(wanted, abs=1e-6)


def test_calibration_by_hand():
    rng = np.random.default_rng(7)
    chances = rng.uniform(0.2, 1, 20_000)
    honest = rng.uniform(size=20_000) < chances
    assert expected_calibration_error(chances, honest) < 0.02
    assert expected_calibration_error(chances, np.zeros(20_000, bool)) == pytest.approx(chances.mean(), abs=1e-6)
    bars = reliability(chances, honest)
    assert sum(bar.count for bar in bars) == 20_000
    assert all(abs(bar.accuracy - bar.confidence) < 0.05 for bar in bars if bar.count > 500)
    assert bars[0].accuracy is None
    low, high = calibration_interval(chances[:200], honest[:200])
    assert low <= expected_calibration_error(chances[:200], honest[:200])
    for number in range(20):  # an error that is really there, of 0.2
        chances = rng.uniform(0.4, 1, 400)
        low, high = calibration_interval(chances, rng.uniform(size=400) < chances - 0.2, number)
        assert 0.05 < low < high < 0.35
    assert np.isnan(expected_calibration_error([], []))
