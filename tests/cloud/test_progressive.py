"""Progressive answers: calibration, and a stream on which the server asks for the layers it lacks."""

from __future__ import annotations

import json
import queue

import numpy as np
import pytest

from benchmarks.accuracy.calibration_fit import fit
from cloud.engine.calibration import (
    FILE,
    Calibration,
    LayerCalibration,
    read_calibration,
    read_calibrations,
    write_calibration,
)
from cloud.front.limits import ServerOptions
from tests.cloud.served import Served, classify
from tests.cloud.tiny_codec import write_tiny_codec
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

LABELS = ["cat", "dog", "car", "tree"]


@pytest.fixture(scope="module")
def codec(tmp_path_factory, tiny_clip):
    """The tiny codec with a calibration that trusts one layer by 0.2 to 0.8, the more the larger the margin."""
    bundle = write_tiny_codec(tmp_path_factory.mktemp("progressive") / "tiny-codec")
    layer = LayerCalibration(1.0, np.array([0.0, 1.0]), np.array([0.2, 0.8]))
    write_calibration(bundle, tiny_clip.id, Calibration((layer,)), "by hand", 0)
    return bundle


@pytest.fixture(scope="module")
def served(tiny_clip, codec):
    server = Served(tiny_clip, codec, options=ServerOptions(stream_window=2, confidence=0.9))
    yield server
    server.close()


class Talk:
    """A stream that sends and receives one message at a time."""

    def __init__(self, served, metadata=()):
        self._out = queue.SimpleQueue()
        self._answers = served.stub.ClassifyStream(iter(self._out.get, None), timeout=60, metadata=metadata)

    def __call__(self, **fields):
        self._out.put(pb.ClassifyStreamRequest(**fields))
        return next(self._answers)

    def close(self):
        self._out.put(None)
        assert list(self._answers) == []


@pytest.fixture
def talk(served):
    talk = Talk(served)
    yield talk
    talk.close()


def first(packet: Packet, confidence=0.0, frame_id=7, **fields):
    request = classify(packet.prefix(1).to_bytes(), labels=LABELS, frame_id=frame_id, top_k=1, **fields)
    return {"request": request, "progressive": pb.Progressive(max_layers=2, confidence=confidence)}


def more(packet: Packet, layers=None, frame_id=7, crc=None):
    crc = int.from_bytes(packet.to_bytes()[-4:], "little") if crc is None else crc
    return {"more": pb.MoreLayers(frame_id=frame_id, layers=layers or packet.layers[1:], packet_crc32c=crc)}


@pytest.fixture
def packet(make_packet):
    return Packet.from_bytes(make_packet(11))


def test_an_unsure_answer_asks_for_the_next_layer_and_its_bytes_alone_finish_it(served, talk, packet):
    asked = talk(**first(packet))
    assert asked.WhichOneof("outcome") == "need_more"
    assert (asked.frame_id, asked.need_more.layer) == (7, 2)
    so_far = asked.need_more.so_far
    whole_short = served.stub.Classify(first(packet)["request"], timeout=60)
    assert so_far.predictions == whole_short.predictions
    assert 0.2 <= asked.need_more.confidence <= 0.8
    answer = talk(**more(packet))
    assert (answer.WhichOneof("outcome"), answer.frame_id, answer.result.model.layers) == ("result", 7, 2)
    whole = served.stub.Classify(classify(packet.to_bytes(), labels=LABELS, top_k=1), timeout=60)
    assert answer.result.predictions == whole.predictions


def test_a_sure_enough_answer_is_final(talk, packet):
    answer = talk(**first(packet, confidence=0.1))
    assert (answer.WhichOneof("outcome"), answer.result.model.layers) == ("result", 1)
    assert talk(**more(packet)).error.reason == "UNKNOWN_FRAME"


def test_without_the_offer_nothing_more_is_asked_for(talk, packet):
    fields = first(packet)
    del fields["progressive"]
    assert talk(**fields).WhichOneof("outcome") == "result"
    only = first(packet)
    only["progressive"].max_layers = 1
    assert talk(**only).WhichOneof("outcome") == "result"


def test_layers_that_are_damaged_or_of_another_frame_are_refused(talk, packet, make_packet):
    other = Packet.from_bytes(make_packet(12))
    damaged = bytes([packet.layers[1][0] ^ 1]) + packet.layers[1][1:]
    bad = [
        more(packet, layers=[damaged]),
        more(other),
        more(packet, crc=1),
        more(packet, layers=[b"", b"", b""]),
        more(packet, layers=[b"x"] * 40),
    ]
    for fields in bad:
        assert talk(**first(packet)).WhichOneof("outcome") == "need_more"
        assert talk(**fields).error.reason == "BAD_PACKET"
        assert talk(**more(packet)).error.reason == "UNKNOWN_FRAME"  # its edge sends the whole packet
    assert talk(**more(packet, frame_id=8)).error.reason == "UNKNOWN_FRAME"
    assert talk(**first(packet, confidence=1.5)).error.reason == "INVALID_REQUEST"


def test_frames_that_wait_for_layers_leave_the_window_and_the_oldest_are_forgotten(talk, packet):
    for frame_id in range(5):  # the window is 2, so 4 are kept
        assert talk(**first(packet, frame_id=frame_id)).WhichOneof("outcome") == "need_more"
    assert talk(**more(packet, frame_id=0)).error.reason == "UNKNOWN_FRAME"
    for frame_id in range(1, 5):
        assert talk(**more(packet, frame_id=frame_id)).result.model.layers == 2


def test_a_bundle_without_a_calibration_is_answered_at_once(tiny_clip, tiny_codec, packet):
    served = Served(tiny_clip, tiny_codec)
    try:
        talk = Talk(served)
        assert talk(**first(packet)).WhichOneof("outcome") == "result"
        talk.close()
        info = served.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
        assert not info.bundles[0].progressive
    finally:
        served.close()


def test_the_server_says_which_bundles_are_progressive(served):
    assert served.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60).bundles[0].progressive


# ---------------------------------------------------------------- calibration


def test_the_fit_finds_the_temperature_and_what_more_layers_would_add():
    """Labels drawn from softmax(logits / 2) must give temperature 2; all layers being right, what they add is known."""
    rng = np.random.default_rng(0)
    count, labels = 20_000, 5
    logits = rng.normal(0, 4, (count, labels))
    odds = np.exp(logits / 2)
    odds /= odds.sum(axis=1, keepdims=True)
    drawn = (odds.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    (layer,) = fit(np.stack([logits, np.eye(labels)[drawn]]), drawn).layers
    assert layer.temperature == pytest.approx(2, rel=0.06)
    ordered = np.sort(odds, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    for low, high in ((0.1, 0.2), (0.45, 0.55), (0.8, 0.9)):
        these = (margins >= low) & (margins < high)
        said = np.mean([layer.confidence(margin) for margin in margins[these]])
        assert said == pytest.approx((logits.argmax(axis=1) == drawn)[these].mean(), abs=0.04)
    assert (np.diff(layer.confidences) >= 0).all()


def test_images_that_all_layers_get_wrong_are_no_reason_to_ask():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (2, 400, 3))
    targets = (np.maximum(logits[0], logits[1]).argmin(axis=1)).astype(int)
    right = (logits.argmax(axis=2) == targets).mean(axis=1)
    assert right.max() < 0.1
    (layer,) = fit(logits, targets).layers
    assert layer.confidence(0.5) > 0.85


def test_no_certainty_from_a_handful_of_images():
    logits = np.tile(np.eye(4)[np.arange(24) % 4], (2, 1, 1)) * 9
    (layer,) = fit(logits, np.arange(24) % 4).layers
    assert layer.confidence(1.0) < 0.97
    for bad in (logits[:1], logits[:, :10], logits[:, :, :1]):
        with pytest.raises(ValueError, match="at least 2, 20 and 2"):
            fit(bad, np.zeros(bad.shape[1], int))


def test_a_calibration_is_read_back_for_its_clip_and_model_only(codec, tiny_clip):
    (layer,) = read_calibration(codec, tiny_clip.id).layers
    assert (layer.temperature, layer.confidence(0.5)) == (1.0, pytest.approx(0.5))
    assert read_calibration(codec, "other#0123") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda document, entry: document.update(model_id="00000000"),
        lambda document, entry: document.update(format=9),
        lambda document, entry: entry.update(layers=[]),
        lambda document, entry: entry["layers"][0].update(confidence=[0.9, 0.1]),
        lambda document, entry: entry["layers"][0].update(margins=[0.1]),
        lambda document, entry: entry["layers"][0].update(margins=["a", "b"]),
        lambda document, entry: entry["layers"][0].update(temperature=0),
    ],
)
def test_a_damaged_calibration_costs_a_warning_and_nothing_else(codec, tiny_clip, tmp_path, caplog, damage):
    bundle = write_tiny_codec(tmp_path / "tiny-codec")
    document = json.loads((codec.path / FILE).read_text())
    damage(document, document["clips"][tiny_clip.id])
    (bundle.path / FILE).write_text(json.dumps(document))
    assert read_calibrations([bundle], tiny_clip.id) == {}
    assert "thinwire-bench calibrate" in caplog.text or "layers" in caplog.text


def test_only_the_final_answer_is_given_again(served, packet):
    """A frame that was answered in steps, asked for again from its first layer: nothing is asked for twice."""
    mine = (("thinwire-spool", "a" * 32),)
    steps = Talk(served, mine)
    assert steps(**first(packet, confidence=0.9, frame_id=21)).need_more.layer == 2
    result = steps(**more(packet, frame_id=21)).result
    steps.close()
    before = served.engine.counts["accepted"]
    again = Talk(served, mine)
    repeat = again(**first(packet, confidence=0.9, frame_id=21)).result
    again.close()
    assert (repeat.predictions, repeat.model.layers) == (result.predictions, 2)
    assert served.engine.counts["accepted"] == before
