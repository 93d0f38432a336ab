"""Packed stills: the same frame in fewer bytes, and what a stranger may put in its place."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tiny_bundle import learned_symbols, make_tiny_still, synthetic_views
from thinwire import frame_decoder, frame_packing
from thinwire.bare_av1 import form_of
from thinwire.bundle import load_bundle, write_bundle
from thinwire.entropy import compiled_module
from thinwire.errors import (
    AlteredFile,
    BadCard,
    BadPayload,
    BadTables,
    CoderMissing,
    DamagedFrame,
    MissingFile,
    PacketError,
)
from thinwire.packet import Packet
from thinwire.still import Rung, StillCoder

if compiled_module() is None:
    pytest.skip("no compiled coder, and nothing else packs", allow_module_level=True)

PACKED, CUT = 0x40, 0x80
CONTENTS = ("smooth", "noise", "flat", "grey", "black", "stripes")


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    yield make_tiny_still(tmp_path_factory.mktemp("packed") / "bundle", packed=True)
    frame_decoder.close()


@pytest.fixture(scope="module")
def planes() -> np.ndarray:
    return np.ascontiguousarray(synthetic_views(1, 64)[0].transpose(2, 0, 1))


@pytest.fixture(scope="module")
def payload(still, planes) -> bytes:
    (payload,) = still.coder.encode(planes)
    assert payload[0] == PACKED | 1
    return payload


@pytest.fixture
def without_compiled_coder(monkeypatch):
    monkeypatch.setattr(frame_packing, "compiled_module", lambda: None)


def test_a_packed_packet_is_smaller_and_holds_the_very_same_picture(still, planes):
    for rate, level in still.rates.items():
        packet = Packet.from_bytes(still.encode(planes, rate).to_bytes())
        number, frame = still.coder.frame(packet.layers)
        plain = still.coder.payload(frame, level, packed=False)
        assert (packet.layers[0][0], plain[0] & ~CUT, number) == (PACKED | level - 1, level - 1, level)
        assert len(packet.layers[0]) < len(plain)
        assert frame == still.coder.rungs[level - 1].frame(_image(planes))
        seen = still.decode(packet)
        assert np.array_equal(seen, still.decode(Packet(still.model_id, (plain,))))
        assert still.level(packet) == level


def _image(planes: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def picture(content: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if content == "smooth":
        pixels = synthetic_views(1, max(width, height), seed)[0][:height, :width]
    elif content == "noise":
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    elif content == "stripes":
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, :: 1 + seed % 5] = rng.integers(0, 256, 3)
    else:
        colour = {"flat": rng.integers(0, 256, 3), "grey": np.full(3, rng.integers(0, 256)), "black": np.zeros(3)}
        pixels = np.broadcast_to(colour[content].astype(np.uint8), (height, width, 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CONTENTS),
    st.integers(1, 160),
    st.integers(1, 160),
    st.integers(0, 99),
    st.sampled_from([6, 8, 10]),
    st.integers(0, 15),
    st.integers(0, 99),
)
@example("noise", 384, 384, 60, 8, 0, 1)  # the largest
@example("noise", 1, 1, 0, 8, 15, 1)
@example("smooth", 1, 144, 50, 6, 3, 1)
@example("noise", 112, 112, 99, 6, 5, 2)
def test_every_frame_comes_back_as_it_was(still, content, width, height, quality, speed, number, seed):
    """Whatever is in it, at any size and rung, also where nothing is packed."""
    rung = Rung(form_of(width, height, speed=speed), quality, speed, "iq")
    coder = StillCoder([rung] * 16, (3, 64, 64), still.symbol_model())
    frame = rung.frame(picture(content, width, height, seed))
    payload = coder.payload(frame, number + 1)
    assert len(payload) <= len(coder.payload(frame, number + 1, packed=False))
    assert coder.frame([payload]) == (number + 1, frame)
    assert payload == coder.payload(frame, number + 1)


def test_forms_that_the_model_does_not_know_are_sent_as_they_are(still, planes):
    model = still.symbol_model()
    for changes in ({"chroma": "4:4:4"}, {"chroma": "4:0:0"}, {"restoration": True}):
        form = dataclasses.replace(form_of(64, 64, speed=8), **changes)
        speed = 4 if form.restoration else 8
        coder = StillCoder([Rung(form, 30, speed, "iq")], (3, 64, 64), model)
        (payload,) = coder.encode(planes)
        assert payload[0] == 0
        with pytest.raises(BadPayload, match="never are"):
            coder.frame([bytes([PACKED]) + payload[1:]])


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (PACKED | CUT | 1, "both"),
        (PACKED | 2, "rung 3"),
        (PACKED | 0x10, "rung"),
        (PACKED | 0x20 | 1, "rung"),
    ],
)
def test_flags_that_no_encoder_sets_are_refused(still, payload, first, told):
    with pytest.raises(BadPayload, match=told):
        still.coder.decode([bytes([first]) + payload[1:]])


def test_a_packed_frame_without_a_model_is_refused(tmp_path, payload):
    plain = make_tiny_still(tmp_path / "plain")
    with pytest.raises(BadPayload, match="never are"):
        plain.coder.decode([payload])


def test_a_packed_frame_that_is_cut_is_a_typed_error_or_a_picture(still, payload):
    for length in (1, *range(2, len(payload), 7)):
        _refused_or_shown(still, payload[:length])


def test_nothing_can_be_appended_to_a_packed_frame(still, payload):
    for more in (b"\x00", b"\x01", bytes(5), b"\xff" * 9):
        with pytest.raises(DamagedFrame, match="is damaged"):
            still.coder.decode([payload + more])
    with pytest.raises(DamagedFrame, match="are not an AV1 frame"):
        still.coder.decode([payload + bytes(30_000)])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_packed_frames_are_errors_or_other_pictures_and_never_end_this_process(still, payload, data):
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_shown(still, bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 1))
def test_any_bytes_are_errors_or_pictures(still, body, number):
    _refused_or_shown(still, bytes([PACKED | number]) + body)


def _refused_or_shown(still, payload: bytes) -> None:
    try:
        seen = still.decode(Packet(still.model_id, (payload,)))
    except PacketError:
        return
    assert (seen.dtype, seen.shape) == (np.uint8, still.latent_shape)


def test_without_a_compiled_coder_frames_are_sent_as_they_are(still, planes, payload, without_compiled_coder):
    light = load_bundle(still.path)
    assert (light.coder.form, still.coder.form) == ("unpacked", "compiled")
    packet = light.encode(planes, "high")
    assert packet.layers[0][0] & PACKED == 0
    assert len(packet.layers[0]) > len(payload)
    assert packet.model_id == still.model_id
    assert np.array_equal(light.decode(packet), still.decode(packet))


def test_without_a_compiled_coder_a_packed_still_is_refused_with_the_fix(still, payload, without_compiled_coder):
    light = load_bundle(still.path)
    with pytest.raises(CoderMissing, match="install thinwire's wheel") as told:
        light.decode(Packet(still.model_id, (payload,)))
    assert told.value.reason == "CANNOT_DECODE"
    assert light.coder.level([payload]) == 2  # what its first byte says needs no coder


# Bundles


def test_the_model_is_a_file_of_the_bundle_and_part_of_the_model_id(tmp_path, still):
    assert sorted(path.name for path in still.path.iterdir()) == ["card.json", "symbols.bin"]
    plain = make_tiny_still(tmp_path / "plain")
    other = write_bundle(
        tmp_path / "other",
        name="other",
        wire=plain.card.wire,
        symbol_model=learned_symbols(still.coder.rungs, synthetic_views(2, 64, seed=8)),
    )
    assert len({plain.model_id, still.model_id, other.model_id}) == 3
    assert plain.picture_id == still.picture_id == other.picture_id == plain.model_id
    assert plain.symbol_model() is None
    assert still.card.wire["symbols"]["bytes"] == len(still.symbol_model())


def test_the_same_frames_give_the_same_model(still):
    views = synthetic_views(3, 64, seed=4)
    assert learned_symbols(still.coder.rungs, views) == learned_symbols(still.coder.rungs, views)


def test_a_model_that_is_missing_altered_or_of_another_kind_is_told(tmp_path, still):
    folder = tmp_path / "bundle"
    make_tiny_still(folder, packed=True)
    (folder / "symbols.bin").unlink()
    with pytest.raises(MissingFile, match=r"symbols\.bin: file is missing"):
        load_bundle(folder)
    (folder / "symbols.bin").write_bytes(b"x")
    with pytest.raises(AlteredFile, match=r"symbols\.bin"):
        load_bundle(folder)
    wire = {key: value for key, value in still.card.wire.items() if key != "symbols"}
    for foreign in (b"x", still.symbol_model()[:-1], still.symbol_model() + b"\x00"):
        with pytest.raises(BadTables, match=r"symbols\.bin: is no model"):
            write_bundle(tmp_path / "foreign", name="foreign", wire=wire, symbol_model=foreign)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"file": "../symbols.bin"}, "file"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 1 << 30}, "bytes"),
    ],
)
def test_a_card_with_an_impossible_model_is_refused_by_field(tmp_path, still, changes, told):
    card = json.loads((still.path / "card.json").read_text())
    card["wire"]["symbols"] |= changes
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(BadCard, match=rf"symbols\.{told}"):
        load_bundle(tmp_path)


def test_a_model_belongs_to_stills_and_is_given_whole(tmp_path, still):
    with pytest.raises(BadCard, match=r"give what symbols\.bin holds"):
        write_bundle(tmp_path / "a", name="a", wire=still.card.wire)
    with pytest.raises(BadCard, match=r"no symbols\.bin"):
        write_bundle(tmp_path / "a", name="a", wire={"family": "tiny"}, symbol_model=b"")


def test_a_child_unpacks_frames_of_several_bundles(still, planes, payload):
    """It gets the model of each once, and keeps them apart."""
    other = StillCoder(still.coder.rungs, still.coder.shape, compiled_module().StillPacker(b"").state())
    (of_other,) = other.encode(planes)
    assert of_other[0] == payload[0]
    assert of_other != payload
    frame_decoder.close()
    wanted = still.coder.decode([payload])
    for coder, packed in ((other, of_other), (still.coder, payload), (other, of_other)):
        assert np.array_equal(coder.decode([packed]), wanted)
    assert frame_decoder._idle.qsize() == 1


def test_a_child_that_dies_while_it_unpacks_costs_one_frame(still, payload, monkeypatch):
    wanted = still.coder.decode([payload])
    child = frame_decoder._take()
    frame_decoder._idle.put(child)
    ask = type(child).ask

    def dying(*asked):
        child._process.kill()
        child._process.wait()
        return ask(child, *asked)

    monkeypatch.setattr(child, "ask", dying)
    with pytest.raises(DamagedFrame, match="decoder"):
        still.coder.decode([payload])
    assert np.array_equal(still.coder.decode([payload]), wanted)
