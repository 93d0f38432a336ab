"""A student of a tiny random CLIP: distilled, resumed, exported, and refused where another CLIP serves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cloud.errors import ClipMismatch
from cloud.networks.assemble import open_engine
from cloud.networks.clip import load_clip
from edge.encoder import Encoder
from edge.field.fallback import ImageVectors
from export.cli import main
from export.photographs.collection import open_photographs
from export.student.network import StudentError, load_student
from export.student.targets import Targets
from export.towers import load_tower
from tests.cloud.tiny_clip import write_tiny_clip
from tests.export.photographs import crops
from tests.export.tiny_student import WORDS, pictures
from thinwire.bundle import load_bundle

pytestmark = pytest.mark.slow  # a student is distilled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures to learn from, and a cache of their own."""
    folder = tmp_path_factory.mktemp("student")
    pictures(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def clip(folder):
    return write_tiny_clip(folder / "tiny-random-clip")


@pytest.fixture(scope="module")
def run(folder, clip):
    """Of four steps, in two parts."""
    words = ["student", "--clip", str(clip), "--images", str(folder / "images"), "--out", str(folder / "run"), *WORDS]
    assert main([*words, "--steps", "2"]) == 0
    first = (folder / "run" / "checkpoint.pt").read_bytes()
    assert main([*words, "--steps", "2"]) == 0
    assert (folder / "run" / "checkpoint.pt").read_bytes() == first, "a run that is done is not trained again"
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run):
    return load_bundle(run / "bundle")


def test_the_card_names_the_teacher_by_its_fingerprint(bundle, clip):
    teacher = load_clip(str(clip))
    assert bundle.card.cloud["clip"] == teacher.id
    assert bundle.card.about["training"]["teachers"] == [teacher.id]
    assert bundle.card.wire["family"] == "embedding"
    assert bundle.input_size == (96, 96)
    assert 0 < bundle.card.about["parity"]["answers"]["fp32"] <= 1


def test_it_learns_what_the_teacher_says(run):
    told = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert told[0]["cosine"] > 0.2, "the closed-form start is better than chance"
    assert np.isfinite(list(told[-1].values())).all()


def test_device_and_cloud_read_its_packets_alike(bundle, clip, folder):
    view = crops(1, seed=9)[0]
    view = bundle.view(np.asarray(Image.fromarray(view)))
    packet = Encoder(bundle).encode(view, "high").packet
    own = ImageVectors(bundle).vector(view)
    with open_engine(str(clip), [bundle.path], "cpu", 1, cache_dir=folder / "heads") as engine:
        clouds = engine.submit(packet=packet.to_bytes()).result(30).embedding
    assert own @ clouds == pytest.approx(1, abs=0.05), "the device has all layers, the packet those of its rate"


def test_another_clip_refuses_it(bundle, folder):
    other = write_tiny_clip(folder / "other" / "tiny-random-clip", seed=5)
    with pytest.raises(ClipMismatch, match="the weights are not"):
        open_engine(str(other), [bundle.path], "cpu", 1, cache_dir=folder / "heads").__enter__()


def test_int8_is_there_only_with_its_parity_stated(bundle):
    stated = "int8" in bundle.card.about["parity"]["answers"]
    assert (bundle.path / "encoder.int8.onnx").exists() == stated


def test_views_and_targets_are_the_same_for_the_same_photograph(folder, clip):
    teacher = load_tower(str(clip))
    photographs = open_photographs([str(folder / "images")], side=96)
    places = np.array([3, 1, 40])
    first = Targets(photographs, teacher, 96, 2, 0)
    pixels, vectors = first.take(places, 1)
    first.save()
    again = Targets(photographs, teacher, 96, 2, 0)
    assert again._has.sum() == 3
    for got, wanted in zip(again.take(places, 1), (pixels, vectors)):
        torch.testing.assert_close(got, wanted)
    whole, _ = again.take(places, 0)
    assert not torch.equal(whole, pixels)
    assert pixels.shape == (3, 3, 96, 96)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--size", "100"], "multiple of 16 from 96 to 224"),
        (["--size", "512"], "multiple of 16 from 96 to 224"),
        (["--backbone", "no-such-network"], "--backbone no-such-network: cannot be had"),
        (["--clip", "timm:resnet18"], "text tower|cannot be had"),
    ],
)
def test_mistakes_are_named(words, why, folder, clip):
    command = ["student", "--clip", str(clip), "--images", str(folder / "images"), "--out", str(folder / "bad")]
    with pytest.raises(SystemExit, match=why):
        main([*command, "--steps", "1", *words])


def test_a_backbone_that_gives_no_vector_is_refused():
    with pytest.raises(StudentError, match="multiple of 16"):
        load_student("lite0", 90, 32)
