"""Stills: bare AV1 frames as packets; what a stranger sends reaches a process that may die, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundle import make_tiny_bundle, make_tiny_still, synthetic_views
from thinwire import bare_av1, frame_decoder
from thinwire.bare_av1 import form_of
from thinwire.bundle import load_bundle, write_bundle
from thinwire.errors import (
    BadCard,
    BadPayload,
    DamagedFrame,
    MalformedPacket,
    MissingFile,
    PacketError,
    RateError,
    SymbolError,
)
from thinwire.packet import Packet
from thinwire.still import Rung, StillCoder


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    yield make_tiny_still(tmp_path_factory.mktemp("still") / "bundle")
    frame_decoder.close()


@pytest.fixture(scope="module")
def planes() -> np.ndarray:
    return np.ascontiguousarray(synthetic_views(1, 64)[0].transpose(2, 0, 1))


def written(folder, **changes):
    """A card of a still with other entries in its first rung."""
    rung = {**Rung(form_of(32, 32, speed=6), 20, 6, "iq").card(), **changes}
    return write_bundle(
        folder,
        name="still",
        wire={
            "family": "still",
            "input": {"height": 64, "width": 64, "resize": "shortest-crop", "filter": "bicubic"},
            "stills": [rung],
            "rates": [{"name": "low", "still": 1}],
        },
    )


def test_a_packet_is_one_layer_that_names_its_rung_and_gives_the_view_back(still, planes):
    sizes = {}
    for rate, level in still.rates.items():
        packet = Packet.from_bytes(still.encode(planes, rate).to_bytes())
        assert (len(packet.layers), still.level(packet)) == (1, level)
        seen = still.decode(packet)
        assert (seen.dtype, seen.shape) == (np.uint8, planes.shape)
        sizes[rate] = (len(packet), float(np.abs(seen.astype(int) - planes).mean()))
    assert sizes["low"][0] < sizes["high"][0]
    assert 2 < sizes["high"][1] < sizes["low"][1] < 30


def test_the_lead_stays_at_home_and_comes_back(still, planes):
    rung = still.coder.rungs[1]
    frame = rung.frame(_image(planes))
    lead = frame[:7]
    for given_lead, cut in ((lead, True), (b"\x00" * 7, False), (b"", False)):
        coder = StillCoder([dataclasses.replace(rung, lead=given_lead)], still.coder.shape)
        (payload,) = coder.encode(planes)
        assert payload == (b"\x80" + frame[7:] if cut else b"\x00" + frame)
        assert np.array_equal(coder.decode([payload]), still.decode(still.encode(planes, "high")))


def test_there_is_one_byte_string_for_each_frame(still, planes):
    rung = still.coder.rungs[1]
    frame = rung.frame(_image(planes))
    coder = StillCoder([dataclasses.replace(rung, lead=frame[:7])], still.coder.shape)
    with pytest.raises(BadPayload, match="carries the lead"):
        coder.decode([b"\x00" + frame])


@pytest.mark.parametrize(
    ("payloads", "error"),
    [
        ([b""], BadPayload),
        ([b"\x02abc"], BadPayload),  # there are two rungs
        ([b"\x7fabc"], BadPayload),
        ([b"\x80abc"], BadPayload),  # rung 1 has no lead
        ([b"\x00"], DamagedFrame),
        ([b"\x00" + bytes(20)], DamagedFrame),
        ([b"\x00" + b"\xff" * 300], DamagedFrame),
        ([b"\x00" + bytes(60_000)], DamagedFrame),  # more than any frame of this size
        ([b"\x00abc", b"\x00abc"], MalformedPacket),
    ],
)
def test_what_no_encoder_writes_is_refused_by_name(still, payloads, error):
    with pytest.raises(error):
        still.decode(Packet(still.model_id, tuple(payloads)))


def test_another_shape_type_or_rate_is_refused_before_coding(still, planes):
    for bad in (planes[:, :32], planes.astype(np.int32), [1]):
        with pytest.raises(SymbolError):
            still.coder.encode(bad, 1)
    for level in (0, 3):
        with pytest.raises(SymbolError):
            still.coder.encode(planes, level)
    with pytest.raises(RateError):
        still.encode(planes, "enormous")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_frames_are_errors_or_other_pictures_and_never_end_this_process(still, planes, data):
    payload = bytearray(still.encode(planes, "high").layers[0])
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(1, len(payload)))]
    try:
        seen = still.decode(Packet(still.model_id, (bytes(payload),)))
    except PacketError:
        return
    assert seen.shape == planes.shape


def test_a_decoder_that_dies_costs_one_frame(still, planes, monkeypatch):
    packet = still.encode(planes, "high")
    wanted = still.decode(packet)
    child = frame_decoder._take()
    frame_decoder._idle.put(child)

    def dying(*asked):
        os.kill(child._process.pid, signal.SIGSEGV)
        return _Child.ask(child, *asked)

    _Child = type(child)
    monkeypatch.setattr(child, "ask", dying, raising=False)
    with pytest.raises(DamagedFrame, match=r"exit code -11|is gone"):
        still.decode(packet)
    assert np.array_equal(still.decode(packet), wanted)  # by another child


def test_a_decoder_that_hangs_is_ended_in_time(still, planes, monkeypatch):
    packet = still.encode(planes, "high")
    still.decode(packet)
    child = frame_decoder._take()
    frame_decoder._idle.put(child)
    monkeypatch.setattr(frame_decoder, "TIMEOUT_S", 0.2)
    os.kill(child._process.pid, signal.SIGSTOP)
    with pytest.raises(DamagedFrame, match=r"took more than 0\.2 s"):
        still.decode(packet)
    assert not child.alive
    monkeypatch.undo()
    assert still.decode(packet).shape == planes.shape


def test_threads_decode_side_by_side_and_get_their_own_pictures(still):
    views = [np.ascontiguousarray(view.transpose(2, 0, 1)) for view in synthetic_views(6, 64, seed=5)]
    packets = [still.encode(view, "high") for view in views]
    wanted, got = [still.decode(packet) for packet in packets], {}

    def work(place: int) -> None:
        got[place] = [still.decode(packets[place]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(packets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(np.array_equal(each, wanted[place]) for place, seen in got.items() for each in seen)
    assert len(got) == len(packets)


def test_a_child_reads_no_module_of_the_working_folder(still, planes, tmp_path, monkeypatch):
    (tmp_path / "PIL.py").write_text("raise SystemExit('a stranger ran')\n")
    monkeypatch.chdir(tmp_path)
    frame_decoder.close()
    assert still.decode(still.encode(planes, "low")).shape == planes.shape


# Bundles


def test_a_bundle_has_neither_tables_nor_encoder_and_loads_from_its_card_alone(still):
    assert sorted(path.name for path in still.path.iterdir()) == ["card.json"]
    assert not still.has_encoder
    assert load_bundle(still.path).model_id == still.model_id
    with pytest.raises(MissingFile, match="no encoder network"):
        still.encoder_path()


def test_what_a_packet_means_is_in_the_model_id(tmp_path, still):
    ids = {
        written(tmp_path / str(place), **changes).model_id
        for place, changes in enumerate(({}, {"width": 33}, {"quality": 21}, {"lead": "00"}, {"restoration": True}))
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 0}, "width"),
        ({"width": 1024, "height": 1024}, "at most"),
        ({"chroma": "4:1:1"}, "chroma"),
        ({"cdef": 1}, "true or false"),
        ({"quality": 100}, "quality"),
        ({"speed": 11}, "speed"),
        ({"tune": "film"}, "tune"),
        ({"lead": "0g"}, "hex"),
        ({"lead": "00" * 33}, "at most 32 bytes"),
    ],
)
def test_a_card_with_an_impossible_rung_is_refused_by_field(tmp_path, changes, told):
    with pytest.raises(BadCard, match=told):
        written(tmp_path / "bundle", **changes)


def test_rates_of_a_still_name_rungs_that_exist_and_rise(tmp_path, still):
    card = json.loads((still.path / "card.json").read_text())
    for rates in ([{"name": "a", "still": 3}], [{"name": "a", "still": 2}, {"name": "b", "still": 1}], []):
        card["wire"]["rates"] = rates
        (tmp_path / "card.json").write_text(json.dumps(card))
        with pytest.raises(BadCard, match="rates"):
            load_bundle(tmp_path)


def test_tables_and_encoders_do_not_belong_in_a_still_and_are_needed_elsewhere(tmp_path, still):
    tiny = make_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(BadCard, match="neither tables nor an encoder"):
        write_bundle(tmp_path / "a", name="a", wire=still.card.wire, tables=tiny.coder.tables)
    with pytest.raises(BadCard, match="needs tables and an encoder"):
        write_bundle(tmp_path / "a", name="a", wire=tiny.card.wire)


def _image(planes: np.ndarray):
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def test_the_decoder_is_the_one_of_bare_frames(still, planes):
    rung = still.coder.rungs[1]
    frame = rung.frame(_image(planes))
    apart = frame_decoder.decode_apart(frame, rung.form)
    assert np.array_equal(apart, bare_av1.decode(frame, rung.form))
