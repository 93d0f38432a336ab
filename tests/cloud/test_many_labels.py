"""Thousands of labels: their vectors take minutes, so the server says how far it is, and others get their turn."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from benchmarks.rig.bad_link import BadLink
from cloud.engine.one_shot_executor import OneShotExecutor
from cloud.engine.text_heads import HeadCache
from edge.line.label_upload import Progress, run_upload
from edge.line.uplink import Line, Uplink
from tests.waiting import until
from thinwire.v1 import inference_pb2 as pb

TEXTS = tuple(f"label number {number} of many" for number in range(700))


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr("cloud.engine.text_heads.PROMPTS_PER_CALL", 128)


@pytest.fixture
def gate(tiny_clip, monkeypatch):
    """The text tower works on one batch each time `release` is set; `batches`: sizes of those it was given."""

    class Gate:
        release, batches, step = threading.Semaphore(0), [], threading.Event()

    plain = tiny_clip.encode_texts

    def encode(texts):
        Gate.batches.append(len(texts))
        Gate.step.set()
        assert Gate.release.acquire(timeout=60)
        return plain(texts)

    monkeypatch.setattr(type(tiny_clip), "encode_texts", lambda self, texts: encode(texts))
    yield Gate
    Gate.release.release(100)  # of a test that failed: the server cannot stop while a step waits


def test_a_generator_takes_turns_with_what_is_submitted_after_it():
    order: list[object] = []
    began, go_on = threading.Event(), threading.Event()

    def steps():
        began.set()
        go_on.wait(60)
        for number in range(3):
            order.append(number)
            yield
        return "whole"

    with OneShotExecutor("test") as thread:
        whole = thread.submit_in_turns(steps())
        began.wait(60)
        small = thread.submit(order.append, "small")
        go_on.set()
        small.result(60)
        assert whole.result(60) == "whole"
    assert order == [0, "small", 1, 2]


def test_a_generator_that_raises_or_is_cut_off_tells():
    def broken():
        yield
        raise ZeroDivisionError

    with OneShotExecutor("test") as thread, pytest.raises(ZeroDivisionError):
        thread.submit_in_turns(broken()).result(60)
    began, go_on = threading.Event(), threading.Event()

    def long():
        began.set()
        go_on.wait(60)
        yield
        yield

    thread = OneShotExecutor("test")
    future: Future = thread.submit_in_turns(long())
    began.wait(60)
    thread.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    with pytest.raises(RuntimeError):
        future.result(60)


def test_heads_in_steps_are_those_at_once(tiny_clip, small_steps):
    cache = HeadCache(tiny_clip)
    steps = cache.load_steps(TEXTS[:300], ("a {}.", "the {}"))
    seen = []
    while True:
        try:
            next(steps)
            seen.append(cache.progress(TEXTS[:300], ("a {}.", "the {}")))
        except StopIteration as end:
            head = end.value
            break
    assert seen == [(128, 600), (256, 600), (384, 600), (512, 600), (600, 600)]
    assert cache.progress(TEXTS[:300], ("a {}.", "the {}")) == (600, 600)  # not 0 again, for who asks a moment later
    np.testing.assert_array_equal(head.classes, HeadCache(tiny_clip).load(TEXTS[:300], ("a {}.", "the {}")).classes)


def test_a_small_question_does_not_wait_for_a_large_one(serve, make_packet, small_steps, gate):
    served = serve()
    large = served.stub.RegisterLabels.future(pb.RegisterLabelsRequest(labels=TEXTS, prompt_set="1"), timeout=60)
    assert gate.step.wait(60)
    small = served.stub.Classify.future(
        pb.ClassifyRequest(image=pb.ImageInput(packet=make_packet()), labels=["cat", "dog"], prompt_set="1"), timeout=60
    )
    # The large one is in its first of six steps, so what waits is the small one
    until(lambda: served.engine._texts._waiting, what="the small question waits for the text thread")
    gate.release.release(3)  # the large one's first and second step, then the only one of the small one
    assert small.result(timeout=60).predictions
    assert not large.done()
    gate.release.release(4)
    assert large.result(timeout=60).labels == len(TEXTS)


def test_the_server_tells_how_many_vectors_are_made(serve, small_steps, gate, monkeypatch):
    monkeypatch.setattr("cloud.front.service.PART_WAIT_S", 0.05)
    served = serve()
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(Progress(**vars(progress)))
        if progress.held_bytes == progress.total_bytes:
            gate.release.release()

    request = pb.RegisterLabelsRequest(labels=TEXTS, prompt_set="7")
    reply = run_upload(request, lambda part: served.stub.RegisterLabelsPart(part, timeout=60), tell)
    assert reply.labels == len(TEXTS)
    done = [each.texts_done for each in told if each.texts]
    assert done == sorted(done)
    assert max(done) >= 128
    assert {each.texts for each in told} <= {0, 7 * len(TEXTS)}
    assert "of 4,900 texts" in str(next(each for each in told if each.texts))


@pytest.mark.slow
def test_thousands_of_labels_and_seven_templates_over_a_thin_link_end(serve, make_packet):
    """35,000 texts through a real server, over a link that carries less than all of them within its timeout."""
    served = serve()
    labels = [f"{number} words that nobody knows {number}" for number in range(5000)]
    told: list[str] = []
    with BadLink(served.address, lambda _: 8 * 20_000) as link, Uplink(Line(link.address, timeout_s=2)) as uplink:
        request = pb.RegisterLabelsRequest(labels=labels, prompt_set="7")
        reply = uplink.register(request, lambda progress: told.append(str(progress)))
        question = pb.ClassifyRequest(image=pb.ImageInput(packet=make_packet()), label_set=reply.label_set, top_k=1)
        assert uplink.classify(question).predictions
    assert any("of 35,000 texts" in each for each in told)
