"""Frames that a device asks for again: answered from what was answered, neither computed nor counted twice."""

from __future__ import annotations

import queue

import pytest

from cloud.front.access import Security
from cloud.front.repeats import ENTRY_BYTES, Repeats
from cloud.front.server import ServerOptions
from tests.cloud.served import classify
from tests.waiting import until
from thinwire.errors import PacketError
from thinwire.v1 import inference_pb2 as pb

MINE = (("thinwire-spool", "a" * 32),)
THEIRS = (("thinwire-spool", "b" * 32),)


@pytest.fixture
def served(serve):
    return serve()


def answer(number=1, labels=3) -> pb.ClassifyResponse:
    response = pb.ClassifyResponse(frame_id=number, timing=pb.Timing(total_ms=3, batch_size=2))
    for index in range(labels):
        response.predictions.add(label=f"label {index}", index=index, probability=0.5)
    return response


def test_a_repeat_gets_its_answer_and_costs_nothing(served, make_packet):
    request = classify(make_packet(), frame_id=77, top_k=2)
    first = served.stub.Classify(request, timeout=60, metadata=MINE)
    again = served.stub.Classify(request, timeout=60, metadata=MINE)
    assert first.timing.batch_size == 1
    assert again.timing == pb.Timing()  # nothing was computed
    assert (again.predictions, again.model, again.frame_id) == (first.predictions, first.model, 77)
    assert served.engine.counts["accepted"] == 1
    (streamed,) = served.stub.ClassifyStream(
        iter([pb.ClassifyStreamRequest(request=request)]), timeout=60, metadata=MINE
    )
    assert streamed.result == again
    assert served.engine.counts["accepted"] == 1


def test_what_is_no_repeat_is_computed(served, make_packet):
    packet = make_packet()
    asked = [
        (classify(packet, frame_id=5), MINE),
        (classify(packet, frame_id=5), THEIRS),
        (classify(packet, frame_id=6), MINE),
        (classify(packet, frame_id=5, labels=["other", "labels"]), MINE),
        (classify(packet, frame_id=5, top_k=1), MINE),
        (classify(packet, frame_id=5, prompt_set="80"), MINE),
        (classify(packet, frame_id=5), ()),
        (classify(packet, frame_id=0), MINE),
        (classify(packet, frame_id=0), MINE),
        (classify(packet, frame_id=9), (("thinwire-spool", "x" * 65),)),
        (classify(packet, frame_id=9), (("thinwire-spool", "x" * 65),)),
    ]
    for request, metadata in asked:
        assert served.stub.Classify(request, timeout=60, metadata=metadata).timing.batch_size == 1
    assert served.engine.counts["accepted"] == len(asked)


def test_a_handle_and_its_labels_are_one_question(served, make_packet):
    labels = ["cat", "dog", "car"]
    handle = served.stub.RegisterLabels(pb.RegisterLabelsRequest(labels=labels), timeout=60).label_set
    before = served.engine.counts["accepted"]
    packet = make_packet()
    whole = classify(packet, labels=labels, frame_id=5)
    short = classify(packet, labels=[], label_set=handle, frame_id=5)
    first = served.stub.Classify(whole, timeout=60, metadata=MINE)
    assert served.stub.Classify(short, timeout=60, metadata=MINE).predictions == first.predictions
    assert served.engine.counts["accepted"] == before + 1


def test_errors_are_not_kept(served, make_packet):
    stream = queue.SimpleQueue()
    answers = served.stub.ClassifyStream(iter(stream.get, None), timeout=60, metadata=MINE)
    stream.put(pb.ClassifyStreamRequest(request=classify(b"broken", frame_id=5)))
    assert next(answers).error.reason == "BAD_PACKET"
    stream.put(pb.ClassifyStreamRequest(request=classify(make_packet(), frame_id=5)))
    assert next(answers).result.timing.batch_size == 1
    stream.put(None)
    assert list(answers) == []


def test_a_frame_asked_for_again_while_it_is_computed_waits_for_that_answer(served, make_packet):
    request = classify(make_packet(), frame_id=5)
    held = served.hold(classify(make_packet(3)))
    first = served.stub.Classify.future(request, timeout=60, metadata=MINE)
    until(lambda: served.engine.counts["accepted"] == 2)
    second = served.stub.Classify.future(request, timeout=60, metadata=MINE)
    third = served.stub.Classify.future(classify(make_packet(4), frame_id=6), timeout=60, metadata=MINE)
    until(lambda: served.engine.counts["accepted"] == 3)  # the third: the second never reaches the engine
    until(lambda: len(served.engine._queue) == 2)  # both are decoded, so one batch takes them
    served.runner.gate.set()
    assert first.result().predictions == second.result().predictions
    assert {first.result().timing.batch_size, second.result().timing.batch_size} == {2, 0}
    assert held.result().predictions
    assert third.result().predictions
    assert served.engine.counts["accepted"] == 3


def test_who_waited_for_a_call_that_was_cancelled_gets_an_answer_of_its_own(served, make_packet):
    request = classify(make_packet(), frame_id=5)
    served.hold(classify(make_packet(3)))
    first = served.stub.Classify.future(request, timeout=60, metadata=MINE)
    until(lambda: served.engine.counts["accepted"] == 2)
    second = served.stub.Classify.future(request, timeout=60, metadata=MINE)
    first.cancel()
    until(lambda: served.engine.counts["accepted"] == 3)
    served.runner.gate.set()
    assert second.result().predictions


def test_a_repeat_is_not_charged_against_the_clients_rate(serve, make_packet):
    served = serve(security=Security(rate_per_s=0.01, burst=1))
    request = classify(make_packet(), frame_id=5)
    first = served.stub.Classify(request, timeout=60, metadata=MINE)
    for _ in range(3):
        assert served.stub.Classify(request, timeout=60, metadata=MINE).predictions == first.predictions


def test_nothing_is_kept_where_the_configuration_says_so(serve, make_packet):
    served = serve(options=ServerOptions(repeat_bytes=0))
    request = classify(make_packet(), frame_id=5)
    for count in (1, 2):
        served.stub.Classify(request, timeout=60, metadata=MINE)
        assert served.engine.counts["accepted"] == count


# ---------------------------------------------------------------- its bounds


async def kept(repeats: Repeats, key: bytes) -> bool:
    computed = []

    async def compute():
        computed.append(key)
        return answer()

    got = await repeats.answer(key, compute)
    assert got.predictions == answer().predictions
    return not computed


async def test_the_least_recently_used_go_first():
    size = len(answer().SerializeToString()) + ENTRY_BYTES
    repeats = Repeats(3 * size, 100)
    assert [await kept(repeats, key) for key in (b"a", b"b", b"c")] == [False] * 3
    assert await kept(repeats, b"a")
    assert not await kept(repeats, b"d")
    assert repeats.held_bytes <= 3 * size
    assert await kept(repeats, b"a")
    assert not await kept(repeats, b"b")
    assert repeats.counts["dropped"] == 2
    assert repeats.counts["repeated"] == 2


async def test_old_answers_are_not_given():
    now = [0.0]
    repeats = Repeats(1 << 20, 60, clock=lambda: now[0])
    assert not await kept(repeats, b"a")
    now[0] = 59
    assert await kept(repeats, b"a")
    now[0] = 61
    assert not await kept(repeats, b"a")


async def test_what_fails_is_not_kept():
    repeats = Repeats(1 << 20, 60)

    async def fail():
        raise PacketError("no")

    with pytest.raises(PacketError):
        await repeats.answer(b"a", fail)
    assert not await kept(repeats, b"a")
