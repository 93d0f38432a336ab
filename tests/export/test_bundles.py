"""A bundle from a three-step run must already do what a shipped one does: edge's encoder in, cloud's decoder out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import synthesis
from cloud.decode import Decoder
from edge.encoder import Encoder
from export.bundles import SIZE, training_views
from export.families import CONV
from export.onnx_export import EncoderGraph
from export.photographs.collection import open_photographs
from tests.export.photographs import photograph
from thinwire.bundle import load_bundle
from thinwire.errors import AlteredFile
from thinwire.packet import Packet


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture(scope="module")
def encoder(bundle):
    return Encoder(bundle)


def test_the_card_says_what_was_made(bundle, bundle_folder, run, settings):
    card = json.loads((bundle_folder / "card.json").read_text())
    assert card["wire"]["family"] == "conv"
    assert card["wire"]["input"] == {"height": 224, "width": 224, "resize": "shortest-crop", "filter": "bicubic"}
    assert bundle.latent_shape == (CONV.channels, 14, 14)
    assert bundle.rates == dict(CONV.rates)
    training, parity = card["about"]["training"], card["about"]["parity"]
    assert training["encoder_parameters"] == sum(p.numel() for p in CONV.analysis().parameters())
    assert training["decoder_parameters"] == sum(p.numel() for p in CONV.synthesis().parameters())
    assert (training["progress"], training["settings"]["steps"]) == (1.0, settings.steps)
    assert parity["images"] == 8
    assert 0.999 <= parity["equal_symbols"] <= 1
    encoders = set(card["edge"]["files"])
    assert encoders == {"encoder.onnx"} | ({"encoder.int8.onnx"} if "int8" in parity else set())
    assert parity["bytes"] == card["edge"]["files"]["encoder.onnx"]["bytes"]
    assert "precision" not in card["edge"]  # int8 is for those who ask, until accuracy and speed were measured with it
    assert set(card["cloud"]["files"]) == {"decoder.safetensors"}
    assert {path.name for path in bundle_folder.iterdir()} == {
        "card.json",
        "tables.npz",
        "decoder.safetensors",
        *encoders,
    }


def test_an_altered_decoder_is_found_by_its_hash(bundle_folder, tmp_path):
    for file in bundle_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    load_bundle(tmp_path)
    data = bytearray((tmp_path / "decoder.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "decoder.safetensors").write_bytes(data)
    with pytest.raises(AlteredFile, match=r"decoder\.safetensors"):
        load_bundle(tmp_path)


def test_tables_are_counted_on_views_that_the_edge_would_make(bundle):
    views = training_views(open_photographs(), 5)
    assert (views.shape, views.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(views, training_views(open_photographs(), 5))
    assert bundle.view(Image.fromarray(views[0])).shape == views[0].shape
    assert len(training_views(open_photographs(), 99)) == 36  # no more than there are


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg"])
def test_every_prefix_of_a_packet_becomes_a_picture(bundle, encoder, name):
    image = photograph(name)
    packet = encoder.encode_image(image, "high").packet
    assert len(packet.layers) == len(CONV.layers)
    symbols = encoder.symbols(bundle.view(image))
    decoder, pictures = Decoder([bundle]), []
    for count, (_, stop) in enumerate(CONV.layers, start=1):
        data = packet.prefix(count).to_bytes()
        decoded = bundle.decode(Packet.from_bytes(data))
        np.testing.assert_array_equal(decoded[:stop], symbols[:stop])
        assert not decoded[stop:].any()
        pictures.append(decoder.picture(data))
        assert (pictures[-1].shape, pictures[-1].dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert not np.array_equal(pictures[0], pictures[-1])


@pytest.mark.parametrize(("rate", "layers"), CONV.rates)
def test_a_rate_is_a_prefix(encoder, rate, layers):
    image = photograph("coffee.png")
    whole = encoder.encode_image(image, "high").packet
    assert encoder.encode_image(image, rate).packet == whole.prefix(layers)


def test_symbols_of_the_edge_are_those_of_the_trained_net(bundle, encoder, run):
    """The edge runs the exported file, cut out of torch: it must say what the checkpoint says of a photograph."""
    analysis = CONV.analysis()
    analysis.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["analysis"])
    view = bundle.view(photograph("rocket.jpg"))
    with torch.inference_mode():
        wanted = EncoderGraph(analysis, CONV.low, CONV.high)(torch.from_numpy(view)[None])[0].numpy()
    got = encoder.symbols(view)
    assert np.abs(got - wanted).max() <= 1
    assert (got == wanted).mean() > 0.999


def test_the_shipped_decoder_is_the_trained_one_in_half_precision(bundle, run):
    net = synthesis.load(bundle)
    trained = torch.load(run / "checkpoint.pt", weights_only=True)["synthesis"]
    assert set(net.state_dict()) == set(trained)
    for name, value in net.state_dict().items():
        assert torch.equal(value.contiguous(), trained[name].half().float()), name
