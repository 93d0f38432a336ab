"""`thinwire-bench calibrate` and `progressive` on a tiny codec, CLIP and data set, through a real server."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.tiny_bundle import make_tiny_bundle, synthetic_views

pytest.importorskip("torch")

from benchmarks.accuracy.progressive import against_fixed
from benchmarks.cli import main
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from tests.cloud.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for number, view in enumerate(synthetic_views(24, 64, seed=2)):
        target = folder / "data" / ("cat", "dog", "city")[number % 3] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view).save(target)
    bundle = make_tiny_bundle(folder / "tiny", with_decoder=True)
    return folder, bundle, write_tiny_clip(folder / "tiny-random-clip")


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_calibrate_then_measure(parts, capsys, monkeypatch):
    folder, bundle, clip = parts
    words = ["--data", str(folder / "data"), "--bundle", str(bundle.path), "--clip", str(clip), "--prompt-set", "1"]

    def served():
        return open_engine(str(clip), [bundle.path], "cpu", 1, cache_dir=folder / "heads")

    with background_server(served()) as address:
        assert main(["progressive", *words, "--server", address]) == 1
    assert "run `thinwire-bench calibrate" in capsys.readouterr().err

    assert main(["calibrate", *words]) == 0
    document = last_line(capsys)
    assert [each["layers"] for each in document["layers"]] == [1, 2]
    assert (bundle.path / "calibration.json").is_file()

    monkeypatch.setattr("benchmarks.accuracy.progressive.CONFIDENCES", (0.01, 0.9999))
    with background_server(served()) as address:
        assert main(["progressive", *words, "--server", address, "--confidence", "0.9999"]) == 0
    document = last_line(capsys)
    low, high = document["fixed"][0], document["fixed"][-1]
    calm, keen = document["points"]
    assert (calm["bytes_mean"], calm["top1"]) == (low["bytes_mean"], low["top1"])
    assert (keen["layers_mean"], keen["top1"]) == (3.0, high["top1"])  # never sure enough: every layer is fetched
    assert high["bytes_mean"] < keen["bytes_mean"] <= high["bytes_mean"] + 26
    assert (document["bytes_mean"], document["top1"]) == (keen["bytes_mean"], keen["top1"])


def point(size, top1, **more):
    return {"bytes_mean": size, "top1": top1, **more}


def test_equal_accuracy_is_read_off_between_points_and_never_beyond_them():
    fixed = [point(100, 0.5, rate="low"), point(200, 0.6, rate="mid"), point(400, 0.8, rate="high")]
    points = [point(140, 0.58), point(150, 0.55), point(180, 0.62), point(300, 0.7)]
    mid, high = against_fixed(fixed, points)
    assert (mid["progressive_bytes_mean"], mid["bytes_ratio"]) == (160.0, 0.8)
    assert (high["progressive_bytes_mean"], high["bytes_ratio"]) == (None, None)
