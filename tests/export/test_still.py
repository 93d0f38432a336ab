"""`thinwire-export still`: rungs with the start that their frames share, in a bundle without any network."""

from __future__ import annotations

import numpy as np
import pytest

from export import still
from export.cli import main
from tests.tiny_bundle import synthetic_views
from thinwire.bundle import load_bundle


@pytest.fixture(autouse=True)
def photographs(monkeypatch):
    monkeypatch.setattr(still, "training_views", lambda photographs, count: synthetic_views(count, still.SIZE))


def test_the_command_writes_a_bundle_of_the_six_rungs(tmp_path, capsys):
    assert main(["still", "--out", str(tmp_path / "still"), "--count", "6"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "still")
    bundle = load_bundle(tmp_path / "still")
    assert list(bundle.rates) == list(still.RUNGS)
    assert [(rung.form.width, rung.quality) for rung in bundle.coder.rungs] == [r[:2] for r in still.RUNGS.values()]
    assert all(len(rung.lead) >= 4 for rung in bundle.coder.rungs)
    planes = np.ascontiguousarray(synthetic_views(1, still.SIZE, seed=9)[0].transpose(2, 0, 1))
    assert bundle.decode(bundle.encode(planes, "mid")).shape == planes.shape


def test_the_lead_is_the_start_that_saves_most_bytes():
    assert still.common_lead([b"abcd1", b"abcd2", b"abxx3"]) == b"abcd"  # 2 x 4 bytes; "ab" would save 3 x 2
    assert still.common_lead([b"ab1", b"ab2", b"ab3", b"abcd4"]) == b"ab"
    assert still.common_lead([b"a" * 50]) == b"a" * 32


def test_a_list_of_bundles_shows_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["still", "--out", str(tmp_path / "still"), "--count", "4"])
    assert main(["list", str(tmp_path / "still")]) == 0
    assert "Pillow's AV1" in capsys.readouterr().out
