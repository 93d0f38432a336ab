"""From nothing but a folder of photographs and a CLIP of one's own: every command that makes models, then a server.

The CLIP is tiny and random, so that no answer means anything; that each artefact is made, fits and is served does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("timm")
pytest.importorskip("skimage")
pytest.importorskip("onnxscript")
pytest.importorskip("peft")

from benchmarks.cli import main as bench
from benchmarks.rig.server_process import running_service
from edge.line.client import Client
from export import photos
from export.cli import main as export
from export.train import PRESETS
from tests.export.photographs import CAPTIONS, photograph
from tests.export.tiny_towers import write_tiny
from thinwire.bundle import load_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 100


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of photographs and a CLIP; no ../shared, a cache of its own."""
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "data_root", lambda: root / "nothing")
        patch.setenv("THINWIRE_CACHE", str(root / "cache"))
        patch.setitem(PRESETS, "cpu", replace(PRESETS["cpu"], batch=2, crop=64, tuning_crop=64, threads=1))
        for number in range(COUNT):
            name = list(CAPTIONS)[number % len(CAPTIONS)]
            image = photograph(name)
            side = round(min(image.size) * (0.3 + 0.006 * number))
            target = root / "camera" / Path(name).stem / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            image.crop((0, 0, side, side)).resize((240, 240)).save(target)
        write_tiny("ViT", root / "clip")
        yield root


def words(place: Path, *rest: object) -> list[str]:
    return [*map(str, rest), "--clip", str(place / "clip"), "--images", str(place / "camera")]


def served(place: Path, bundle: Path, **beside: Path) -> None:
    with (
        running_service(str(place / "clip"), bundle, **beside) as address,
        Client(address, load_bundle(bundle)) as client,
    ):
        result = client.classify(str(place / "camera" / "coffee" / "2.jpg"), ["cup", "cat"], 2)
    assert {each.label for each in result.predictions} == {"cup", "cat"}


def test_a_codec_its_tuned_decoder_its_adapter_and_its_calibration(place, capsys):
    run = place / "run"
    small = ["--steps", "2", "--threads", "1"]
    assert export(words(place, "train", "layered", "--out", run, *small)) == 0
    bundle = run / "bundle"
    training = load_bundle(bundle).card.about["training"]
    assert f"camera ({COUNT} photographs)" in training["data"]
    assert training["teachers"][0].startswith("clip#")
    tuned = {}
    for into in ("pixels", "tower"):
        out = place / f"tuned-{into}"
        rest = ["--into", into, "--count", "16", "--batch", "4", *small, "--out", out]
        assert export(words(place, "tune", "--bundle", bundle, *rest)) == 0
        tuned[into] = out / "decoder"
        served(place, bundle, decoder=tuned[into])
    rest = ["--rates", "tiny", "--count", "16", *small, "--decoder", tuned["pixels"], "--out", place / "adapted"]
    assert export(words(place, "adapt", "--bundle", bundle, *rest)) == 0
    served(place, bundle, decoder=tuned["pixels"], adapter=place / "adapted" / "adapter")
    assert (
        bench(words(place, "calibrate", "--bundle", bundle, "--labels", "cup,cat,rocket,astronaut", "--limit", 40)) == 0
    )
    assert len(json.loads((bundle / "calibration.json").read_text())["clips"]) == 1
    capsys.readouterr()
    measured = ["eval", "--data", place / "camera", "--bundle", bundle, "--clip", place / "clip", "--limit", 4]
    out = ["--rates", "tiny", "--prompt-set", "1", "--decoder", tuned["tower"], "--json", place / "eval.json"]
    assert bench([str(each) for each in (*measured, *out)]) == 0
    document = json.loads((place / "eval.json").read_text())
    assert document["decoder"]["into"] == "tower"
    assert [row["codec"] for row in document["results"]] == ["uncompressed", "layered", "layered+decoder"]
    assert export(["card", str(bundle), str(place / "eval.json")]) == 0


def test_an_embedding_of_ones_own_clip(place):
    out = place / "embedding"
    assert export(words(place, "embedding", "--out", out, "--count", COUNT)) == 0
    served(place, out)
