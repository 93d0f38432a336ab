"""Whom a codec serves: savings before own and foreign judges, from points whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE
from benchmarks.report.judges import judges_section
from benchmarks.results.rows import group_points
from benchmarks.results.store import PointStore
from benchmarks.results.transfer import FOREIGN_MEAN, SERVING, foreign_mean, judge_names, predictors, served, summary

N = 200
SHARES = (0.4, 0.6, 0.8, 0.95)


def content(kind: str, codec: str, rate: str | None, size: float, share: float, strangers: float) -> dict:
    """A point whose serving CLIP and own judge are right for the first `share` of the images, its stranger for less."""
    right = [1 if place < share * N else 0 for place in range(N)]
    held = [7 if place < strangers * N else 8 for place in range(N)]
    own = [7 if each else 8 for each in right]
    images = {"packet_bytes": [size] * N, "encode_ms": [1.0] * N, "psnr_db": [20 + 10 * strangers] * N}
    nothing = ("message_bytes", "wire_bytes", "round_trip_ms", "ms_ssim", "perceptual", "pooled_cosine", "patch_cosine")
    answers = {
        "top": [[1 if each else 0] for each in right],
        "true_similarity": [0.2] * N,
        "other_similarity": [0.1] * N,
    }
    pictures = codec != "vectors"
    return {
        "kind": kind,
        "codec": codec,
        "rate": rate,
        "parameters": {"side": 224, "quality": size},
        "data": {"name": "set"},
        "targets": [1] * N,
        "n": N,
        "seed": 0,
        "clip": "clip#1",
        "clip_role": "own" if kind == FAMILY else "foreign",
        "device": "cpu",
        "prompt_sets": ["7"],
        "view": [224, 224],
        "images": images | {name: [None] * N for name in nothing},
        "answers": {"7": answers},
        "judges": {
            name: {"id": f"{name}#1", "role": role, "targets": None, "answers": told if pictures else [None] * N}
            for name, role, told in (
                ("teacher", "own" if kind == FAMILY else "foreign", own),
                ("stranger", "foreign", held),
            )
        },
        "failed": 0,
        "failure_messages": [],
    }


@pytest.fixture
def out(tmp_path):
    store = PointStore(tmp_path, "rate-accuracy", {"command": "test", "testbed": {"cpu": "any"}})
    points = [content(REFERENCE, "uncompressed", None, 90_000, 1, 1)]
    points += [content(PEER, "av1", f"{n}", 200 * 2**n, share, share) for n, share in enumerate(SHARES)]
    # Half of the peer's bytes for the same answers of its teacher; double for a stranger's
    points += [
        content(FAMILY, "tuned", f"{n}", 100 * 2**n, share, max(0.2, share - 0.4)) for n, share in enumerate(SHARES)
    ]
    points += [content(FAMILY, "vectors", "a", 50, 0.9, 0)]
    for point in points:
        key = {name: point[name] for name in ("kind", "codec", "rate", "parameters", "seed", "clip")}
        store.save({**key, "data": "set", "answers_sha256": "a", "n": N}, point, 0.1)
    return tmp_path


def group_of(out):
    from benchmarks.results.store import read_points

    (group,) = group_points(read_points(out, "rate-accuracy"))
    return group


def test_a_tuned_codec_saves_before_its_teacher_and_loses_before_strangers(out):
    group = group_of(out)
    assert judge_names(group) == ["teacher", "stranger"]
    found = {(each["codec"], each["judge"]): each for each in summary(group)}
    assert set(found) == {
        ("tuned", SERVING), ("tuned", "teacher"), ("tuned", "stranger"), ("tuned", FOREIGN_MEAN), ("vectors", SERVING),
    }  # fmt: skip
    assert found["tuned", SERVING]["role"] == found["tuned", "teacher"]["role"] == "own"
    assert found["tuned", SERVING]["saving"] == pytest.approx(0.5, abs=0.01)
    assert found["tuned", "teacher"]["saving"] == pytest.approx(0.5, abs=0.01)
    assert found["tuned", "stranger"]["saving"] < -0.9
    assert found["tuned", FOREIGN_MEAN]["saving"] == pytest.approx(found["tuned", "stranger"]["saving"], abs=0.05)
    low, high = found["tuned", "teacher"]["ci95"]
    assert low <= 0.5 <= high
    rates = found["tuned", "stranger"]["rates"]
    assert [rate["bytes_mean"] for rate in rates] == [100, 200, 400, 800]
    assert rates[-1]["best_peer_bytes"] == pytest.approx(200 * 2**0.75, rel=0.01)  # 0.55 lies between 0.4 and 0.6
    assert rates[0]["best_peer_at_most"]
    json.dumps(summary(group), allow_nan=False)


def test_foreign_means_and_predictors(out):
    group = group_of(out)
    means = {each.codec: each for each in foreign_mean(group)}
    assert set(means) == {"av1", "tuned"}  # vectors show no picture
    assert means["tuned"].shares == [0.2, 0.2, 0.4, 0.55]
    assert means["av1"].shares == pytest.approx(SHARES)  # of a peer both judges are foreign, and agree
    assert {each.codec for each in served(group, "stranger")} == {"av1", "tuned"}
    told = predictors(group)
    assert told["psnr_db"].rho == pytest.approx(1, abs=0.02)
    assert told["top1"].rho < told["psnr_db"].rho
    assert told["ms_ssim"].rho is None
    assert np.isfinite(told["packet_bytes"].rho)


def test_the_section_has_every_judge(out):
    section = judges_section(out)
    assert section is not None
    for word in ("serving CLIP", "teacher", "stranger", "critical rate", "PSNR", "own", "foreign"):
        assert word in section.markdown
        assert word in section.html
    assert len(section.figures) == 3
    json.dumps(section.findings, allow_nan=False)


def test_no_section_without_judges(tmp_path):
    assert judges_section(tmp_path) is None
