"""Views that are coded once: found again under the names of before, made where they are missing, drawn in rounds."""

from __future__ import annotations

import numpy as np
import pytest

from export.kept_views import KeptViews, views_of_step, written_whole
from thinwire.bundle import load_bundle


@pytest.mark.parametrize(("batch", "count"), [(4, 14), (7, 7), (16, 5)])
def test_every_view_comes_once_before_any_comes_again(batch, count):
    steps = count // min(batch, count)
    for round_ in range(3):
        drawn = [views_of_step(round_ * steps + step, batch, count, seed=3) for step in range(steps)]
        assert {told for told, _ in drawn} == {round_}
        indices = np.concatenate([index for _, index in drawn])
        assert len(set(indices)) == len(indices) == steps * min(batch, count)
    assert not np.array_equal(views_of_step(0, batch, count, 3)[1], views_of_step(steps, batch, count, 3)[1])


def test_the_order_of_views_is_that_of_runs_of_before():
    """Checkpoints name a step alone: another order would show a resumed run some views twice."""
    assert views_of_step(5, 4, 14, 2)[1].tolist() == [13, 3, 0, 6]


def test_views_of_before_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path))
    kept = KeptViews("adapt-views", 3, load_bundle("still"), ["", "clip#0", [1, 2], 0, "pictures", 1, 64])
    assert kept.folder.name == "still-ca80928f396c92ca"
    assert kept.folder.is_relative_to(tmp_path)


def test_an_interrupted_making_goes_on_with_the_chunk_that_is_not_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path))
    kept, made = KeptViews("any", 1, load_bundle("still"), []), []

    def make(path, number):
        with written_whole(path.with_suffix(".npy")) as file:
            np.save(file, np.arange(number))
            if len(made) == 1:
                made.append("stopped")
                raise KeyboardInterrupt
        made.append(path.name)

    with pytest.raises(KeyboardInterrupt):
        kept.complete(["a", "b", "c"], ".npy", 2, "views", make)
    assert not (kept.folder / "b.npy").exists()
    paths = kept.complete(["a", "b", "c"], ".npy", 2, "views", make)
    assert made == ["a", "stopped", "b", "c"]
    assert [len(np.load(path.with_suffix(".npy"))) for path in paths] == [0, 1, 2]
