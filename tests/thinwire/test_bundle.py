from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.tiny_bundle import CHANNELS, LAYERS, analyse, make_tiny_bundle, synthetic_views
from thinwire import bundle as bundle_module
from thinwire.bundle import load_bundle, resolve_bundle, shipped_bundles, write_bundle
from thinwire.errors import (
    AlteredFile,
    BadCard,
    BadPayload,
    BadTables,
    BundleError,
    MalformedPacket,
    MissingFile,
    RateError,
    UnknownBundle,
    UnknownModel,
)
from thinwire.packet import Packet


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A folder with the tiny bundle that a test may spoil."""
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy")


def edit_card(folder, change) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def test_what_a_bundle_tells(tiny_bundle):
    assert tiny_bundle.name == "tiny"
    assert tiny_bundle.input_size == (64, 64)
    assert tiny_bundle.latent_shape == (CHANNELS, 4, 4)
    assert list(tiny_bundle.rates.items()) == [("low", 1), ("mid", 2), ("high", 3)]
    assert len(tiny_bundle.model_id) == 4
    assert tiny_bundle.encoder_path().name == "encoder.onnx"
    assert tiny_bundle.card.wire["latent"]["low"] == tiny_bundle.coder.tables.low


def test_symbols_round_trip_at_every_rate(tiny_bundle):
    symbols = analyse(synthetic_views(1, 64, seed=3))[0]
    highest = tiny_bundle.encode(symbols, "high")
    sizes = []
    for rate, layers in tiny_bundle.rates.items():
        packet = tiny_bundle.encode(symbols, rate)
        assert packet == highest.prefix(layers)
        decoded = tiny_bundle.decode(Packet.from_bytes(packet.to_bytes()))
        stop = LAYERS[layers - 1][1]
        assert (decoded[:stop] == symbols[:stop]).all()
        assert (decoded[stop:] == 0).all()
        sizes.append(len(packet))
    assert sizes == sorted(set(sizes))


def test_encoder_gives_the_symbols_of_the_contract(tiny_bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tiny_bundle.encoder_path()), providers=["CPUExecutionProvider"])
    views = synthetic_views(5, 64, seed=8)
    (symbols,) = session.run(None, {"image": views})
    assert symbols.dtype == np.int32
    assert symbols.shape == (5, *tiny_bundle.latent_shape)
    assert (symbols == analyse(views)).mean() > 0.999


def test_packet_of_another_model(tiny_bundle):
    packet = tiny_bundle.encode(analyse(synthetic_views(1, 64))[0], "low")
    with pytest.raises(UnknownModel, match="same bundle on both ends") as caught:
        tiny_bundle.decode(Packet(b"\0\0\0\0", packet.layers))
    assert caught.value.reason == "UNKNOWN_MODEL"


def test_packet_with_more_layers_or_garbage(tiny_bundle):
    with pytest.raises(MalformedPacket, match="4 layers"):
        tiny_bundle.decode(Packet(tiny_bundle.model_id, (b"",) * 4))
    with pytest.raises(BadPayload):
        tiny_bundle.decode(Packet(tiny_bundle.model_id, (b"\xff" * 400,)))


def test_unknown_rate_and_precision(tiny_bundle):
    with pytest.raises(RateError, match="low, mid, high"):
        tiny_bundle.n_layers("medium")
    with pytest.raises(MissingFile, match=r"encoder\.int8\.onnx"):
        tiny_bundle.encoder_path("int8")
    with pytest.raises(BundleError, match="fp16"):
        tiny_bundle.encoder_path("fp16")


def test_a_bundle_without_its_decoder_loads_and_says_so_when_asked(tiny_bundle):
    with pytest.raises(MissingFile, match=r"decoder\.safetensors"):
        _ = tiny_bundle.decoder_path


def test_a_cloud_needs_no_encoder_and_an_edge_no_decoder(tmp_path, copy):
    (copy / "encoder.onnx").unlink()
    bundle = load_bundle(copy)
    with pytest.raises(MissingFile, match=r"encoder\.onnx: file is missing"):
        bundle.encoder_path()


def test_the_decoder_is_checked_too(tiny_bundle_with_decoder, tmp_path):
    assert tiny_bundle_with_decoder.decoder_path.is_file()
    folder = shutil.copytree(tiny_bundle_with_decoder.path, tmp_path / "copy")
    data = bytearray((folder / "decoder.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "decoder.safetensors").write_bytes(data)
    with pytest.raises(AlteredFile, match=r"decoder\.safetensors"):
        load_bundle(folder)


def test_decoder_does_not_change_the_model_id(tiny_bundle, tiny_bundle_with_decoder):
    assert tiny_bundle.model_id == tiny_bundle_with_decoder.model_id


def test_metrics_do_not_change_the_model_id_and_meaning_does(copy, tiny_bundle):
    edit_card(copy, lambda card: card["about"].update(metrics={"top1": 0.5}))
    assert load_bundle(copy).model_id == tiny_bundle.model_id
    edit_card(copy, lambda card: card["wire"]["rates"][0].update(name="lowest"))
    assert load_bundle(copy).model_id != tiny_bundle.model_id


@pytest.mark.parametrize("name", ["card.json", "tables.npz"])
def test_missing_files_are_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(MissingFile, match=name):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["tables.npz", "encoder.onnx"])
@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: bytes([d[0] ^ 1]) + d[1:], lambda d: b""]
)
def test_altered_files_are_named(copy, name, damage):
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(AlteredFile, match=name):
        load_bundle(copy)


def wire(**changes):
    return lambda card: card["wire"].update(changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda card: card.update(format=2), "format 2"),
        (lambda card: card.pop("wire"), "wire is missing"),
        (lambda card: card.update(edge=[]), "edge must be a JSON object"),
        (lambda card: card.update(name="../up"), "name"),
        (
            lambda card: card["edge"]["files"].update({"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}),
            "plain file",
        ),
        (lambda card: card["edge"]["files"]["encoder.onnx"].update(sha256="abc"), "SHA-256"),
        (lambda card: card["edge"].update(precision="fp8"), "precision"),
        (lambda card: card["cloud"].update(output="sound"), r"cloud\.output"),
        (wire(context="mixture"), r"wire\.context"),
        (wire(layers=[]), r"wire\.layers"),
        (wire(layers=[{"channels": [0, 6]}, {"channels": [6, 6]}]), "without gaps"),
        (wire(layers=[{"channels": [0, 5]}]), "end at channel 5"),
        (wire(layers=[{"channels": [0, "6"]}]), "start, stop"),
        (wire(rates=[{"name": "a", "layers": 2}, {"name": "b", "layers": 2}]), "rates must rise"),
        (wire(rates=[{"name": "a", "layers": 1}, {"name": "a", "layers": 2}]), "one name"),
        (wire(rates=[{"name": "a", "layers": 4}]), "1 to 3"),
        (wire(rates=[{"name": "a", "layers": True}]), "whole number"),
        (wire(latent={"channels": 6, "height": 4, "width": 4, "low": 3, "high": 3}), "less than"),
        (wire(latent={"channels": 6, "height": 4, "width": 10**9, "low": 0, "high": 3}), "width"),
        (wire(input={"height": 64, "width": 64, "resize": "stretch", "filter": "bicubic"}), "resize"),
        (wire(tables_sha256="0" * 63), "tables_sha256"),
        (wire(note=0.1), "fractional"),
    ],
)
def test_bad_cards_name_the_file_and_the_field(copy, change, match):
    edit_card(copy, change)
    with pytest.raises(BadCard, match=match) as caught:
        load_bundle(copy)
    assert str(copy / "card.json") in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"format": NaN}', b"\xff\xfe", b"[" * 100_000, b" " * (1 << 20) + b"{}"]
)
def test_cards_that_are_no_cards(copy, text):
    (copy / "card.json").write_bytes(text)
    with pytest.raises(BadCard, match=r"card\.json"):
        load_bundle(copy)


def test_tables_of_another_latent(copy):
    edit_card(copy, wire(latent={"channels": 6, "height": 4, "width": 4, "low": -9, "high": 9}))
    with pytest.raises(BadTables, match=r"tables\.npz"):
        load_bundle(copy)


def test_a_folder_with_other_things_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        make_tiny_bundle(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_bundle_is_replaced_whole(tmp_path):
    first = make_tiny_bundle(tmp_path / "b")
    second = make_tiny_bundle(tmp_path / "b", context="none")
    assert first.model_id != second.model_id
    assert load_bundle(tmp_path / "b").model_id == second.model_id
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_write_that_fails_leaves_the_old_bundle(tmp_path, tiny_bundle):
    before = make_tiny_bundle(tmp_path / "b")
    with pytest.raises(BadCard, match=r"b/card\.json"):
        write_bundle(
            tmp_path / "b",
            name="b",
            wire={**tiny_bundle.card.wire, "rates": []},
            tables=tiny_bundle.coder.tables,
            encoder=b"onnx",
        )
    assert load_bundle(tmp_path / "b").model_id == before.model_id
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_tiny_bundle(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["card.json", "encoder.onnx", "tables.npz"]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_names_of_shipped_bundles(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "MODELS", tmp_path)
    made = make_tiny_bundle(tmp_path / "tiny")
    (tmp_path / "clip-lite").mkdir()  # no card: not a codec
    assert shipped_bundles() == {"tiny": made.path}
    assert load_bundle("tiny").model_id == made.model_id
    assert resolve_bundle(str(tmp_path / "tiny")) == made.path
    for unknown in ("tinny", str(tmp_path / "none"), tmp_path / "tiny" / "card.json"):
        with pytest.raises(UnknownBundle, match=r"ships with thinwire \(tiny\)"):
            load_bundle(unknown)


def test_every_shipped_bundle_loads():
    for path in shipped_bundles().values():
        bundle = load_bundle(path)
        if bundle.has_encoder:
            assert bundle.encoder_path().is_file()
            assert bundle.decoder_path.is_file()
