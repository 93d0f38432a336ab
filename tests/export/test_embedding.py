"""Family `embedding`: the tower of a tiny random CLIP as a bundle, from photographs to a real server's answers."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch

import synthesis
from cloud.errors import ClipMismatch
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from cloud.networks.clip import load_clip
from edge import Client
from edge.encoder import Encoder
from export import embedding_bundle
from export.cli import main
from export.families.embedding import LADDER, MAX_CHANNELS, fit_plan, quantise
from export.listing import encoder_work
from export.photographs.errors import PhotographsError
from export.towers import load_tower
from tests.cloud.tiny_clip import write_tiny_clip
from tests.export.photographs import CAPTIONS, crops, photograph, stand_in
from thinwire.bundle import load_bundle
from thinwire.errors import ClipUnavailable
from thinwire.packet import Packet

SIZE = 64
LABELS = ["astronaut", "cat", "cup of coffee", "rocket", "street"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clips") / "tiny-random-clip")


@pytest.fixture(scope="module")
def bundle(clip_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_bundle, "training_views", stand_in)
        out = tmp_path_factory.mktemp("bundles") / "embedding"
        assert main(["embedding", "--clip", str(clip_folder), "--out", str(out), "--count", "400"]) == 0
    return load_bundle(out)


@pytest.fixture(scope="module")
def engine(clip_folder, bundle, tmp_path_factory):
    with open_engine(str(clip_folder), [bundle.path], "cpu", 1, cache_dir=tmp_path_factory.mktemp("heads")) as engine:
        yield engine


@pytest.fixture(scope="module")
def held_out():
    """Other squares of the photographs than those of the fit: uint8 (32, 64, 64, 3)."""
    return crops(32, seed=1)


@pytest.fixture(scope="module")
def vectors(clip_folder, held_out):
    """What the cloud's own CLIP makes of `held_out`, uncompressed: float32 (32, 32), unit rows."""
    images = torch.from_numpy(held_out).permute(0, 3, 1, 2).float() / 255
    return load_clip(str(clip_folder)).encode_images(images).numpy()


def test_the_card_names_the_clip_as_the_server_knows_it(bundle, clip_folder):
    clip = load_clip(str(clip_folder))
    assert bundle.card.cloud["clip"] == clip.id
    assert (bundle.card.cloud["output"], bundle.card.wire["family"]) == ("embedding", "embedding")
    assert bundle.input_size == (clip.image_height, clip.image_width)
    assert bundle.latent_shape[1:] == (1, 1)
    assert {"low", "mid", "high"} <= set(bundle.rates)
    assert sorted(bundle.rates.values()) == list(range(1, len(bundle.card.wire["layers"]) + 1))


def test_every_prefix_decodes_and_each_layer_brings_the_vector_nearer(bundle, held_out, vectors):
    encoder, net = Encoder(bundle), synthesis.load(bundle)
    centre = vectors.mean(0)
    packets = [encoder.encode(view, list(bundle.rates)[-1]).packet for view in held_out]
    errors, sizes = [], []
    for layers in bundle.rates.values():
        shorter = [Packet.from_bytes(Packet(bundle.model_id, p.layers[:layers]).to_bytes()) for p in packets]
        symbols = np.stack([bundle.decode(packet) for packet in shorter])
        with torch.inference_mode():
            decoded = net(torch.from_numpy(symbols).float(), torch.full((len(symbols),), layers)).numpy()
        assert np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
        errors.append(((decoded - vectors) ** 2).sum(1).mean() / ((vectors - centre) ** 2).sum(1).mean())
        sizes.append(np.mean([len(packet.to_bytes()) for packet in shorter]))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.8  # of the variance between photographs: 16 bytes already say something
    assert errors[-1] < 0.02
    assert ((decoded * vectors).sum(1) > 0.99).all()
    assert sizes[0] == pytest.approx(LADDER["16b"], abs=3)
    # Each decoded vector is nearest to its own photograph's, among all
    distances = ((decoded[:, None] - vectors[None]) ** 2).sum(2)
    assert (distances.argmin(1) == np.arange(len(vectors))).mean() > 0.9


def test_a_real_server_answers_as_it_does_for_the_uncompressed_image(bundle, engine, tmp_path):
    finest = list(bundle.rates)[-1]
    with background_server(engine) as address, Client(address, bundle) as client:
        for name in CAPTIONS:
            file = io.BytesIO()
            photograph(name).save(file, "PNG")
            coded = client.classify(photograph(name), LABELS, rate=finest)
            whole = client.classify_file(file.getvalue(), LABELS)
            assert coded.layers == bundle.rates[finest]
            assert coded.best.label == whole.best.label
            there = {each.label: each.similarity for each in whole.predictions}
            assert all(each.similarity == pytest.approx(there[each.label], abs=0.02) for each in coded.predictions)
            packet = client.encoder.encode_image(photograph(name), finest).packet.to_bytes()
            assert len(packet) < 100
            ours = engine.submit(packet=packet).result(60).embedding
            assert ours @ engine.submit(image_file=file.getvalue()).result(60).embedding > 0.99


def test_another_clip_of_the_same_name_is_refused(bundle, clip_folder, tmp_path):
    other = write_tiny_clip(tmp_path / "other" / clip_folder.name, seed=1)
    with pytest.raises(ClipMismatch, match="the weights are not: make the bundle again"):
        open_engine(str(other), [bundle.path], "cpu", 1, cache_dir=tmp_path / "heads")


def test_another_clip_of_another_name_is_refused_with_the_right_one(bundle, clip_folder, tmp_path):
    other = write_tiny_clip(tmp_path / "stranger", seed=1)
    with pytest.raises(ClipMismatch, match=f"--clip {clip_folder.name}"):
        open_engine(str(other), [bundle.path], "cpu", 1, cache_dir=tmp_path / "heads")


def test_the_same_clip_in_a_folder_of_another_name_serves(bundle, clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "renamed")
    open_engine(str(copy), [bundle.path], "cpu", 1, cache_dir=tmp_path / "heads").close()


def test_the_stored_encoder_is_small_and_true(bundle):
    work = bundle.card.about["parity"]
    assert work["equal_symbols"] > 0.97
    assert work["least_cosine"]["onnx"] > 0.995
    parameters, macs = encoder_work(bundle.encoder_path())
    assert bundle.encoder_path().stat().st_size < 3 * parameters + 200_000  # float16, and the graph
    # 16 patches of 16x16 into 32 channels; one block: qkv and projection, MLP of 4; attention; the head and the axes
    tokens, width = 17, 32
    block = tokens * width * width * (4 + 8) + 2 * tokens * tokens * width
    assert macs == 16 * 3 * 256 * width + block + width * width + width * width


def test_list_shows_a_bundle_given_by_path(bundle, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["list", str(bundle.path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if bundle.name in line)
    assert bundle.model_id.hex() in row
    assert all(rate in row for rate in bundle.rates)


@pytest.mark.parametrize("spec", ["nowhere", "ViT-B-32:", ":openai", "ViT-B-32:/no/such/file.pt", "NoSuchNet:tag"])
def test_a_clip_that_is_not_there_is_refused_before_any_work(spec, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["embedding", "--clip", spec, "--out", str(tmp_path / "out")])
    assert "thinwire-export embedding:" in str(caught.value.code)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_refused(clip_folder, tmp_path):
    shutil.copy(clip_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(ClipUnavailable, match="missing or damaged"):
        load_tower(str(tmp_path))


def test_training_it_says_what_to_do_instead():
    with pytest.raises(SystemExit, match="thinwire-export embedding"):
        main(["train", "embedding"])


def test_values_round_towards_zero_a_little_more_often():
    values = torch.tensor([[0.0, 0.5, -0.5, 0.6, -0.6, 1.5, 1.6]])
    assert quantise(values, torch.ones(7)).tolist() == [[0, 0, 0, 1, -1, 1, 2]]


def test_a_plan_keeps_to_the_channels_of_a_card_and_to_its_bytes():
    """Many axes of equal variance, the worst case: no more channels than a card may hold, bits spent to the last."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 500))
    plan = fit_plan(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert len(plan.used) <= MAX_CHANNELS
    assert [name for name, _ in plan.rates] == list(LADDER)
    assert plan.layers[-1][1] == len(plan.used)
    assert json.dumps(plan.layers)  # plain numbers, as a card holds them


def test_a_handful_of_photographs_is_too_few():
    with pytest.raises(PhotographsError, match="more photographs"):
        fit_plan(np.eye(8)[[0, 0, 0]])


def test_the_bundle_in_the_cache_is_made_once(clip_folder, monkeypatch):
    """`--families embedding` of the benchmarks takes it from there."""
    made = []

    def views(photographs, count, seed=0, size=(SIZE, SIZE)):
        made.append(count)
        return crops(400, seed, size)

    monkeypatch.setattr(embedding_bundle, "training_views", views)
    first = embedding_bundle.cached_embedding_bundle(str(clip_folder))
    assert (embedding_bundle.cached_embedding_bundle(str(clip_folder)), len(made)) == (first, 1)
    assert load_bundle(first).card.cloud["clip"] == load_tower(str(clip_folder)).id
