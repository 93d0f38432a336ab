from __future__ import annotations

import json

import pytest

pytest.importorskip("skimage")

from benchmarks.cli import main


def test_both_forms_are_timed(capsys):
    assert main(["coder", "--rounds", "1"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["symbols"] == 28 * 14 * 14
    for form in document["cpu_us"].values():
        for times in form.values():
            assert 0 < times["encode_least"] <= times["encode_p50"]
            assert 0 < times["decode_least"] <= times["decode_p50"]
    assert "readable" in document["cpu_us"]


def test_an_unknown_rate_is_refused(capsys):
    assert main(["coder", "--rate", "enormous"]) == 1
    assert "no rate 'enormous'" in capsys.readouterr().err


def test_a_bundle_without_a_range_coder_is_refused(capsys):
    assert main(["coder", "--bundle", "still"]) == 1
    assert "no range coder" in capsys.readouterr().err
