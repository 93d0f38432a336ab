"""Several packets of one frame: fusion.json, the policy, the evidence that is kept, and a stream that fuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engine.calibration import LayerCalibration
from cloud.engine.fusion import FILE, Earlier, Fusion, Pair, pooled, read_fusion, read_fusions, write_fusion
from cloud.front.evidence import Evidence, Waiting
from cloud.front.limits import ServerOptions
from cloud.watch.options import WatchOptions, WebOptions
from tests.cloud.served import Served, classify
from tests.cloud.test_progressive import Talk
from tests.cloud.tiny_codec import write_tiny_codec
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

LABELS = ["cat", "dog", "car", "tree"]
ABOUT = {"data": "by hand", "date": "2026-11-28", "images": 0, "label_sets": "none"}
SPOOL = (("thinwire-spool", "a-device"),)


def pair(size=300.0, known=(0.2, 0.8), weights=(0.6, 0.9), temperatures=(1.5, 0.8)) -> Pair:
    table = LayerCalibration(temperatures[0], np.array([0.0, 1.0]), np.array(known))
    return Pair(size, temperatures[1], weights, table)


def fusion_of(bundle, **fields) -> Fusion:
    """One layer, then a packet of two layers of the same bundle."""
    return Fusion({(1, bundle.model_id, 2): pair(**fields)}, {bundle.model_id: bundle.name})


# ---------------------------------------------------------------- the file


def test_a_file_comes_back_as_it_was_written(tmp_path):
    bundle = write_tiny_codec(tmp_path / "codec")
    write_fusion(bundle, "other#1", fusion_of(bundle), ABOUT)
    path = write_fusion(bundle, "clip#2", fusion_of(bundle, size=411.0), ABOUT)
    got = read_fusion(bundle, "clip#2")
    ((key, held),) = got.pairs.items()
    assert key == (1, bundle.model_id, 2)
    assert (held.packet_bytes, held.temperature, held.weights) == (411.0, 0.8, (0.6, 0.9))
    assert held.table.confidence(0.5) == pytest.approx(0.5)
    assert got.names == {bundle.model_id: bundle.name}
    document = json.loads(path.read_text())
    assert set(document["clips"]) == {"other#1", "clip#2"}, "the entry of another CLIP stays"
    assert document["clips"]["clip#2"].items() >= ABOUT.items()
    assert read_fusion(bundle, "clip#3") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(format=2),
        lambda d: d.update(model_id="00000000"),
        lambda d: next(iter(d["clips"].values())).pop("temperatures"),
        lambda d: _pair(d).update(weights=[1.0]),
        lambda d: _pair(d).update(weights=[-1.0, 1.0]),
        lambda d: _pair(d).update(weights=[0.0, 0.0]),
        lambda d: _pair(d).update(temperature=0.0),
        lambda d: _pair(d).update(margins=[0.5, 0.1]),
        lambda d: _pair(d).update(bytes="many"),
    ],
)
def test_a_damaged_file_costs_a_warning_and_the_fusing(tmp_path, caplog, spoil):
    bundle = write_tiny_codec(tmp_path / "codec")
    path = write_fusion(bundle, "clip#2", fusion_of(bundle), ABOUT)
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    assert read_fusions([bundle], "clip#2") == {}
    assert FILE in caplog.text
    assert "thinwire-bench cascade --fit" in caplog.text


def _pair(document):
    entry = next(iter(document["clips"].values()))
    return next(iter(entry["with"].values()))["pairs"]["1"]["2"]


# ---------------------------------------------------------------- the opinions and the policy


@given(st.integers(0, 10_000), st.floats(0.05, 2), st.floats(0.05, 2), st.floats(0.3, 3), st.floats(0.3, 3))
def test_one_vector_answers_as_the_weighted_log_probabilities_do(seed, first, second, cool, warm):
    rng = np.random.default_rng(seed)
    texts, one, other = (rng.standard_normal(shape) for shape in ((7, 16), 16, 16))
    one, other = (each / np.linalg.norm(each) for each in (one, other))
    both = pair(weights=(first, second), temperatures=(cool, warm))

    def log_softmax(logits):
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    pool = first * log_softmax(10 * texts @ one / cool) + second * log_softmax(10 * texts @ other / warm)
    vector = pooled(Earlier(one, "first", 1, both), other)
    np.testing.assert_allclose(log_softmax(10 * texts @ vector), log_softmax(pool), atol=1e-3)


def test_the_dial_decides_whether_to_ask_and_for_how_much():
    a, b = b"aaaa", b"bbbb"
    fusion = Fusion(
        {
            (3, a, 1): pair(200, known=(0.80, 1.0)),
            (3, a, 2): pair(400, known=(0.70, 1.0)),
            (3, b, 1): pair(900, known=(0.69, 1.0)),
        }
    )
    offers = {a: (1, 2, 9), b: (1,), b"cccc": (1,)}
    assert fusion.temperature(3, offers) == 1.5
    assert fusion.temperature(4, offers) is None
    at = fusion.wanted(3, 0.0, offers, 0.9)
    assert (at.model_id, at.layers) == (a, 2), "200 bytes are more than 0.1 behind the best, 400 are not"
    assert at.confidence == pytest.approx(0.69)
    at = fusion.wanted(3, 0.0, offers, 0.85)
    assert (at.model_id, at.layers) == (a, 1)
    at = fusion.wanted(3, 0.0, offers, 0.995)
    assert (at.model_id, at.layers) == (b, 1)
    assert fusion.wanted(3, 0.0, offers, 0.69) is None, "no packet adds more than 0.31"
    assert fusion.wanted(3, 1.0, offers, 0.97) is None, "a sure answer needs no more"
    assert fusion.wanted(3, 0.0, {a: (9,)}, 0.97) is None
    assert fusion.wanted(3, 0.0, {a: (1,)}, 0.9).layers == 1


# ---------------------------------------------------------------- what is kept


def waiting(packet: Packet, labels=()) -> Waiting:
    return Waiting(pb.ClassifyRequest(labels=labels), packet, pb.Progressive(), np.zeros(8, np.float32))


def test_a_frame_is_held_until_it_is_taken_or_too_old():
    clock = [0.0]
    held = Evidence(1 << 20, 4, 60.0, lambda: clock[0])
    frame = waiting(Packet(b"abcd", (b"x",)))
    held.keep("a", 1, frame)
    assert held.take("b", 1) is None
    assert held.take("a", 1) is frame
    assert held.take("a", 1) is None
    assert held.held_bytes == 0
    held.keep("a", 2, frame)
    clock[0] = 61.0
    assert held.take("a", 2) is None
    held.keep("a", 3, frame)
    held.keep("b", 3, frame)
    clock[0] = 200.0
    held.keep("c", 3, frame)
    assert held.held_bytes == frame.nbytes, "old frames go when others come"
    held.forget("c")
    assert held.held_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 4000)), max_size=60))
def test_its_budget_holds_whatever_comes(frames):
    held = Evidence(20_000, 5, 60.0)
    for owner, frame_id, size in frames:
        held.keep(owner, frame_id, waiting(Packet(b"abcd", (b"x" * size,)), ["label"] * (size % 7)))
        kept = [each for own in held._held.values() for _, each in own.values()]
        assert held.held_bytes == sum(each.nbytes for each in kept) <= 20_000
        assert all(len(own) <= 5 for own in held._held.values())


def test_who_floods_it_loses_his_own_frames():
    held = Evidence(20_000, 1000, 60.0)
    frame = waiting(Packet(b"abcd", (b"x",)))
    held.keep("honest", 1, frame)
    for number in range(500):
        held.keep("hostile", number, waiting(Packet(b"abcd", (b"x" * 3000,))))
    assert held.take("honest", 1) is frame
    assert held.counts["dropped"] > 400


# ---------------------------------------------------------------- a stream


@pytest.fixture(scope="module")
def codec(tmp_path_factory, tiny_clip):
    bundle = write_tiny_codec(tmp_path_factory.mktemp("fusion") / "tiny-codec")
    write_fusion(bundle, tiny_clip.id, fusion_of(bundle, known=(0.5, 0.5)), ABOUT)
    return bundle


@pytest.fixture(scope="module")
def served(tiny_clip, codec):
    server = Served(tiny_clip, codec, options=ServerOptions(stream_window=2, confidence=0.9, evidence_age_s=5.0))
    yield server
    server.close()


@pytest.fixture
def packet(make_packet):
    return Packet.from_bytes(make_packet(11))


def first(packet: Packet, offers=None, confidence=0.0, frame_id=7, labels=LABELS):
    offers = {packet.model_id: [2]} if offers is None else offers
    others = [pb.Offer(model_id=model_id, layers=layers) for model_id, layers in offers.items()]
    request = classify(packet.prefix(1).to_bytes(), labels=labels, frame_id=frame_id, top_k=4)
    return {"request": request, "progressive": pb.Progressive(max_layers=1, confidence=confidence, others=others)}


def then(packet: Packet, frame_id=7, **fields):
    return {"request": classify(packet.to_bytes(), labels=(), frame_id=frame_id, **fields), "follows": True}


def test_a_server_says_what_it_fuses(served, codec):
    (info,) = served.stub.GetServerInfo(pb.GetServerInfoRequest()).bundles
    assert list(info.fuses_with) == [codec.model_id]


def test_an_unsure_frame_is_asked_for_another_packet_and_both_count(served, packet, codec):
    talk = Talk(served)
    asked = talk(**first(packet)).need_more
    assert (asked.model_id, asked.layer) == (codec.model_id, 2)
    assert asked.confidence == pytest.approx(0.5)
    alone = served.stub.Classify(classify(packet.to_bytes(), labels=LABELS, top_k=4))
    got = talk(**then(packet))
    assert got.frame_id == 7
    result = got.result
    assert [(each.bundle, each.layers) for each in result.opinions] == [(codec.name, 1), (codec.name, 2)]
    assert [each.weight for each in result.opinions] == pytest.approx([0.4, 0.6])
    assert result.opinions[0].label == asked.so_far.predictions[0].label
    assert result.opinions[1].label == alone.predictions[0].label
    assert result.model.layers == 2
    assert sum(each.probability for each in result.predictions) == pytest.approx(1, abs=1e-5)
    # The common opinion from the replies alone: weighted log-probabilities of both, each at its temperature
    scale = _scale(alone)
    so_far = {each.label: each.similarity for each in asked.so_far.predictions}
    now = {each.label: each.similarity for each in alone.predictions}
    logits = np.array([scale * (0.6 / 1.5 * so_far[each] + 0.9 / 0.8 * now[each]) for each in LABELS])
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    fused = {each.label: each.probability for each in result.predictions}
    np.testing.assert_allclose([fused[each] for each in LABELS], wanted, atol=2e-3)
    talk.close()


def _scale(reply) -> float:
    best, last = reply.predictions[0], reply.predictions[-1]
    return np.log(best.probability / last.probability) / (best.similarity - last.similarity)


def test_a_sure_frame_is_answered_at_once(served, packet):
    talk = Talk(served)
    got = talk(**first(packet, confidence=0.4)).result
    assert not got.opinions
    assert not got.notes
    talk.close()


def test_without_a_calibration_nothing_is_fused_and_that_is_said_once(served, packet):
    talk = Talk(served)
    got = [talk(**first(packet, {b"none": [1]}, frame_id=frame_id)).result for frame_id in (1, 2)]
    assert ["no calibration" in "".join(each.notes) for each in got] == [True, False]
    assert all(each.predictions for each in got)
    talk.close()


def test_a_packet_of_a_frame_that_is_not_held_is_answered_by_itself_and_says_so(served, packet):
    talk = Talk(served)
    alone = served.stub.Classify(classify(packet.to_bytes(), labels=LABELS, top_k=4))
    request = {**then(packet, frame_id=99)}
    request["request"] = classify(packet.to_bytes(), labels=LABELS, frame_id=99, top_k=4)
    got = talk(**request).result
    assert not got.opinions
    assert any("frame 99: nothing of it is held" in note for note in got.notes)
    assert [each.label for each in got.predictions] == [each.label for each in alone.predictions]
    talk.close()


def test_a_stream_that_breaks_between_the_packets_goes_on_where_it_was(served, packet):
    talk = Talk(served, metadata=SPOOL)
    assert talk(**first(packet, frame_id=31)).HasField("need_more")
    talk.close()
    talk = Talk(served, metadata=SPOOL)
    result = talk(**then(packet, frame_id=31)).result
    assert len(result.opinions) == 2, "the next stream of the same spool goes on"
    again = talk(**{**then(packet, frame_id=31), "request": _question(packet, 31)}).result
    assert [each.label for each in again.predictions] == [each.label for each in result.predictions]
    assert again.timing.batch_size == 0, "an answer that was lost is given again, not computed again"
    talk.close()
    other = Talk(served)
    assert other(**first(packet, frame_id=32)).HasField("need_more")
    other.close()
    other = Talk(served)
    lost = other(**{**then(packet, frame_id=32), "request": _question(packet, 32)}).result
    assert not lost.opinions, "without a spool a frame ends with its stream"
    other.close()


def _question(packet: Packet, frame_id: int) -> pb.ClassifyRequest:
    return classify(packet.to_bytes(), labels=LABELS, frame_id=frame_id, top_k=4)


def test_a_damaged_second_packet_costs_nothing_that_was_held(served, packet):
    talk = Talk(served)
    assert talk(**first(packet, frame_id=5)).HasField("need_more")
    bad = bytearray(packet.to_bytes())
    bad[-1] ^= 1
    error = talk(request=classify(bytes(bad), labels=(), frame_id=5), follows=True).error
    assert error.reason == "BAD_PACKET"
    assert len(talk(**then(packet, frame_id=5)).result.opinions) == 2
    talk.close()


def test_an_image_file_follows_nothing(served):
    talk = Talk(served)
    request = pb.ClassifyRequest(image=pb.ImageInput(image_file=b"x"), labels=LABELS, frame_id=3)
    assert talk(request=request, follows=True).error.reason == "INVALID_REQUEST"
    talk.close()


def test_metrics_and_the_page_tell_how_far_frames_went(tiny_clip, codec, packet):
    served = Served(tiny_clip, codec, options=ServerOptions(confidence=0.9), watch=WatchOptions(web=WebOptions()))
    try:
        talk = Talk(served)
        assert talk(**first(packet, confidence=0.4)).HasField("result")
        assert talk(**first(packet, frame_id=8)).HasField("need_more")
        assert talk(**then(packet, frame_id=8)).HasField("result")
        assert talk(**then(packet, frame_id=9)).HasField("result")
        assert talk(request=classify(packet.to_bytes(), labels=(), frame_id=10)).HasField("result")
        talk.close()
        _, metrics = served.get("/metrics")
        for went in ("first", "fused", "alone"):
            assert f'thinwire_cascade_frames_total{{went="{went}"}} 1.0'.encode() in metrics
        _, live = served.get("/api/live")
        assert [row["went"] for row in live["latest"]] == ["", "alone", "fused", "first"]
        assert [said["bundle"] for said in live["latest"][2]["opinions"]] == [codec.name, codec.name]
    finally:
        served.close()
