"""Bundles at equal bytes: which rate is sent, what a difference is, and the command end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import make_tiny_bundle, synthetic_views

pytest.importorskip("torch")

from benchmarks import cli
from benchmarks.accuracy.compare import compare
from benchmarks.codecs import selection as contestants
from benchmarks.codecs.peers import png_bytes
from benchmarks.results.rows import Group
from thinwire.errors import MissingFile

RIGHT, WRONG = ["cat"], ["dog"]


def point(kind: str, codec: str, rate: str | None, size: float, right: list[bool]) -> dict:
    """A stored point, as far as a comparison reads it."""
    count = len(right)
    measured = dict.fromkeys(
        ("psnr_db", "ms_ssim", "perceptual", "pooled_cosine", "patch_cosine", "encode_ms", "round_trip_ms")
    )
    sizes = {f"{what}_bytes": [size] * count for what in ("packet", "message", "wire")}
    return {
        "kind": kind,
        "codec": codec,
        "rate": rate,
        "parameters": {},
        "key": {"seed": 0},
        "data": {"name": "made"},
        "clip": "clip#1",
        "view": [64, 64],
        "n": count,
        "failed": 0,
        "failure_messages": [],
        "targets": ["cat"] * count,
        "images": {**sizes, **{name: [1.0] * count for name in measured}},
        "answers": {
            "7": {
                "top": [RIGHT if each else WRONG for each in right],
                "true_similarity": [0.5] * count,
                "other_similarity": [0.1] * count,
            }
        },
    }


@pytest.fixture
def group() -> Group:
    """100 images: `sharp` gets 90 of them within 300 bytes, `dull` 60 of those; `tie` differs from `sharp` by one."""
    sharp = [index < 90 for index in range(100)]
    points = [
        point("reference", "uncompressed", None, 9000, [True] * 100),
        point("family", "sharp", "low", 100, [index < 95 for index in range(100)]),
        point("family", "sharp", "high", 290, sharp),
        point("family", "dull", "low", 250, [index < 60 for index in range(100)]),
        point("family", "tie", "low", 200, [index < 89 for index in range(100)]),
        point("family", "big", "low", 900, [True] * 100),
    ]
    return Group(tuple(points), "made")


def test_each_codec_sends_the_dearest_rate_that_fits_whatever_it_answers(group):
    (entry,) = compare(group, [300], "7")
    assert {row["codec"]: row["rate"] for row in entry["rates"]} == {"sharp": "high", "dull": "low", "tie": "low"}
    assert entry["left_out"] == {"big": "its cheapest rate takes 900 bytes"}
    assert entry["rates"][0]["top1"] == 0.9


def test_differences_are_paired_and_corrected_over_all_pairs_of_all_budgets(group):
    entries = compare(group, [120, 300], "7")
    assert entries[0]["pairs"] == []
    pairs = {(pair["codec"], pair["other"]): pair for pair in entries[1]["pairs"]}
    assert set(pairs) == {("sharp", "dull"), ("sharp", "tie"), ("dull", "tie")}
    clear, close = pairs["sharp", "dull"], pairs["sharp", "tie"]
    assert clear["difference"] == pytest.approx(0.3)
    low, high = clear["difference_ci95"]
    assert 0.2 < low < 0.3 < high < 0.4
    assert clear["p_holm"] == pytest.approx(3 * clear["mcnemar_p"])
    assert (clear["claim"], close["claim"]) == (True, False)
    assert close["difference_ci95"][0] <= 0 <= close["difference_ci95"][1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


def test_the_command_compares_real_bundles(tmp_path, clip, capsys, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    pack = tmp_path / "pack"
    for place, view in enumerate(synthetic_views(6, 64, seed=2)):
        folder = pack / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.png").write_bytes(png_bytes(view))
    bundles = [
        make_tiny_bundle(tmp_path / name, with_decoder=True, context=context, name=name).path
        for name, context in (("plain", "none"), ("checkered", "checkerboard"))
    ]
    out = tmp_path / "out.json"
    words = ["compare", "--bundles", *map(str, bundles), "--data", str(pack), "--clip", str(clip), "--prompt-set", "1"]
    assert cli.main([*words, "--budgets", "10", "400", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    none, all_fit = document["budgets"]
    assert set(none["left_out"]) == {"plain", "checkered"}
    assert [row["rate"] for row in all_fit["rates"]] == ["high", "high"]
    (pair,) = all_fit["pairs"]
    assert pair["difference"] == 0  # the same symbols by other tables are the same pictures
    assert all(np.isfinite(pair["difference_ci95"]))
    assert cli.main([*words, "--budgets", "200", "--json", str(out)]) == 0  # other budgets: nothing is measured again
    assert len(list((tmp_path / "out.json.points" / "rate-accuracy").iterdir())) == 7


# Which bundles `all` stands for


def test_all_is_what_ships_what_was_trained_here_and_the_embedding(tmp_path, monkeypatch, capsys):
    made = make_tiny_bundle(tmp_path / "runs" / "mine" / "bundle", name="mine")
    tower = make_tiny_bundle(tmp_path / "tower", name="tower")
    monkeypatch.setattr(contestants, "local_bundles", lambda: [made.path])
    monkeypatch.setattr(contestants, "_made_embedding", lambda clip: tower.path)
    names = [bundle.name for bundle in contestants.parse_families("all")]
    assert {"still", "layered", "mine", "tower"} <= set(names)
    said = capsys.readouterr().err
    assert "thinwire-export train vae --preset cpu" in said
    assert "layered" not in said


def test_all_names_an_embedding_that_cannot_be_made(monkeypatch, capsys, tmp_path):
    def missing(clip):
        raise MissingFile("photos-train.tar is not there")

    monkeypatch.setattr(contestants, "_made_embedding", missing)
    monkeypatch.setattr(contestants, "local_bundles", lambda: [])
    assert contestants.parse_families("all")
    assert "all bundles, without embedding: photos-train.tar is not there\n" in capsys.readouterr().err


def test_bundles_bound_to_another_clip_are_left_out_of_all(monkeypatch, capsys, tmp_path):
    bound = make_tiny_bundle(tmp_path / "bound", name="bound")
    card = json.loads((bound.path / "card.json").read_text())
    card["cloud"] |= {"clip": "clip-lite#0123456789abcdef"}
    (bound.path / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(contestants, "local_bundles", lambda: [bound.path])
    tower = make_tiny_bundle(tmp_path / "tower", name="tower")
    monkeypatch.setattr(contestants, "_made_embedding", lambda clip: tower.path)
    assert "bound" in [bundle.name for bundle in contestants.parse_families("all", "clip-lite")]
    assert "bound" not in [bundle.name for bundle in contestants.parse_families("all", "ViT-B-32:laion2b")]
    assert "--clip clip-lite" in capsys.readouterr().err
