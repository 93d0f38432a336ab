"""Coarse and fine on answers written by hand; the shipped hierarchies cover their label sets."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks.results.hierarchy import find_hierarchy, losses_by_class, new_confusions, survival
from benchmarks.results.store import ResultsError

COARSE = [0, 0, 0, 1, 1, 2]


def test_survival_by_hand():
    reference, targets = [0, 0, 3, 4, 5, 1], [0, 0, 3, 4, 5, 2]
    found = survival([1, 3, 3, 3, None, 0], reference, targets, COARSE)
    assert (found.lost, found.kept) == (4, 2)  # 0 → 1 and 4 → 3 stay near, 0 → 3 does not, one has no answer
    assert found.chance == pytest.approx((2 / 5 + 2 / 5 + 1 / 5 + 0) / 4)
    assert (found.fine_top1, found.coarse_top1) == (pytest.approx(1 / 6), pytest.approx(4 / 6))
    whole = survival(reference, reference, targets, COARSE)
    assert (whole.lost, whole.share, whole.chance) == (0, None, None)


def test_random_errors_keep_the_coarse_class_by_chance_alone():
    rng = random.Random(0)
    targets = [rng.randrange(6) for _ in range(20_000)]
    wrong = [rng.choice([label for label in range(6) if label != target]) for target in targets]
    found = survival(wrong, targets, targets, COARSE)
    assert found.share == pytest.approx(found.chance, abs=0.01)


def test_confusions_and_losses_by_hand():
    answers, reference, targets = [1, 1, 0, None, 2], [0, 0, 0, 1, 3], [0, 0, 0, 1, 3]
    assert dict(new_confusions(answers, reference, targets)) == {(0, 1): 2, (3, 2): 1}
    assert losses_by_class(answers, reference, targets) == {0: (3, 2), 1: (1, 1), 3: (1, 1)}


def test_hierarchies_shipped_and_own(tmp_path):
    assert find_hierarchy(["cat", "ship"])["ship"] == "vehicle"
    assert find_hierarchy(["cat", "spaceship"], tmp_path) is None
    folder = tmp_path / "hierarchies"
    folder.mkdir()
    (folder / "own.json").write_text(json.dumps({"pet": ["cat"], "craft": ["spaceship"]}))
    assert find_hierarchy(["cat", "spaceship"], tmp_path) == {"cat": "pet", "spaceship": "craft"}
    (folder / "bad.json").write_text("[1, 2]")
    with pytest.raises(ResultsError, match="coarse"):
        find_hierarchy(["cat"], tmp_path)
