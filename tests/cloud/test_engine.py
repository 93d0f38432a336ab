"""The engine's promises, on a device stand-in that can be held, broken and watched."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

from cloud.engine.batching import BatchLimits, DeadlineQueue
from cloud.engine.engine import Engine
from cloud.engine.events import Observer
from cloud.engine.intake import Intake
from cloud.engine.items import EngineLimits
from cloud.engine.prepared import Embedded, Prepared
from cloud.engine.text_heads import HeadCache
from cloud.errors import DeadlinePassed, InferenceFailed, InvalidRequest, QueueFull, ShuttingDown
from tests.cloud.fixed_models import FixedModels
from tests.thinwire.test_imaging import png_header
from tests.waiting import until
from thinwire.errors import ImageError, LabelError, MalformedPacket, ThinwireError

LABELS = ("cat", "dog", "car")


class FakeIntake:
    """A packet's bytes become the array; b"bad" is refused as a real decoder would."""

    def prepare(self, packet, image_file):
        if packet == b"bad":
            raise MalformedPacket("bad on purpose")
        if packet == b"bug":
            raise ZeroDivisionError("a bug on purpose")
        return Prepared(np.frombuffer(packet, np.uint8), "fake", 1)


class FakeRunner:
    """Vectors of ones; fails on a batch that holds b"poison"; waits while `gate` is closed; remembers its batches."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()
        self.batches = []

    def run(self, batch):
        self.busy.set()
        assert self.gate.wait(60), "the test never opened the gate"
        names = [item.array.tobytes() for item in batch]
        self.batches.append(names)
        if b"poison" in names:
            raise RuntimeError("CUDA error, or so")
        vectors = np.ones((len(batch), 32), np.float32) / np.sqrt(32).astype(np.float32)
        for row, name in enumerate(names):
            if name == b"nan":
                vectors[row] = np.nan
        return Embedded(vectors, 1.0, 2.0)

    def hold(self, engine):
        """Closes the gate and puts one item on the device, so that everything after it waits."""
        self.gate.clear()
        self.busy.clear()
        future = engine.submit(packet=b"plug")
        assert self.busy.wait(60)
        return future


@pytest.fixture
def runner():
    return FakeRunner()


@pytest.fixture(params=[0, 2], ids=["device-decodes", "threads-decode"])
def make(request, runner, tiny_clip):
    engines = []

    def build(**given):
        limits = EngineLimits(**{"decode_threads": request.param, **given})
        engine = Engine(runner, FixedModels(FakeIntake(), HeadCache(tiny_clip)), limits, log_errors=False)
        engines.append(engine)
        return engine

    yield build
    runner.gate.set()
    for engine in engines:
        engine.close(5)


def test_an_answer_holds_vector_ranking_and_its_own_timing(make, tiny_clip):
    answer = make().submit(packet=b"x", labels=LABELS, templates=("a {}.",), top_k=2).result(60)
    classes = HeadCache(tiny_clip).load(LABELS, ("a {}.",)).classes
    cosines = classes @ answer.embedding
    best = int(cosines.argmax())
    assert (answer.predictions[0].label, answer.predictions[0].index) == (LABELS[best], best)
    assert answer.predictions[0].similarity == pytest.approx(float(cosines[best]), abs=1e-6)
    assert len(answer.predictions) == 2
    timing = answer.timing
    assert (timing.synthesis_ms, timing.clip_ms, timing.batch_size) == (1.0, 2.0, 1)
    assert 0 <= timing.queue_ms <= timing.total_ms
    assert timing.head_ms > 0
    assert (answer.bundle, answer.layers) == ("fake", 1)


def test_without_labels_the_answer_is_the_vector(make):
    answer = make().submit(packet=b"x").result(60)
    assert answer.predictions == ()
    assert np.linalg.norm(answer.embedding) == pytest.approx(1)


def test_what_waits_while_the_device_works_becomes_one_batch(make, runner):
    engine = make(batch=BatchLimits(items=8))
    plug = runner.hold(engine)
    futures = [engine.submit(packet=b"%d" % n) for n in range(11)]
    until(lambda: len(engine._queue) == 11)
    runner.gate.set()
    sizes = [future.result(60).timing.batch_size for future in [plug, *futures]]
    assert sizes == [1] + [8] * 8 + [3] * 3


def test_batches_are_capped_by_bytes_too(make, runner):
    engine = make(batch=BatchLimits(items=8, bytes=250))
    runner.hold(engine)
    futures = [engine.submit(packet=bytes([n]) * 100) for n in range(3)] + [engine.submit(packet=b"z" * 400)]
    until(lambda: len(engine._queue) == 4)
    runner.gate.set()
    wait(futures, 60)
    assert [len(batch) for batch in runner.batches] == [1, 2, 1, 1]


def test_the_earliest_deadline_goes_first(make, runner):
    engine = make(batch=BatchLimits(items=1))
    runner.hold(engine)
    now = time.monotonic()
    for name, due in ((b"late", now + 50), (b"none", None), (b"soon", now + 20), (b"middle", now + 30)):
        engine.submit(packet=name, deadline=due)
    until(lambda: len(engine._queue) == 4)
    runner.gate.set()
    until(lambda: len(runner.batches) == 5)
    assert [batch[0] for batch in runner.batches] == [b"plug", b"soon", b"middle", b"late", b"none"]


def test_cancelled_and_expired_work_costs_no_device_time(make, runner):
    engine = make()
    runner.hold(engine)
    dropped = engine.submit(packet=b"cancelled")
    due = time.monotonic() + 0.05
    expired = engine.submit(packet=b"expired", deadline=due)
    past = engine.submit(packet=b"past", deadline=time.monotonic() - 1)
    kept = engine.submit(packet=b"kept")
    # A deadline may pass before the queue is reached
    until(lambda: len(engine._queue) + expired.done() + past.done() == 4)
    assert dropped.cancel()
    until(lambda: time.monotonic() > due)
    runner.gate.set()
    assert kept.result(60).timing.batch_size == 1
    with pytest.raises(CancelledError):
        dropped.result(60)
    for future in (expired, past):
        with pytest.raises(DeadlinePassed):
            future.result(60)
    assert runner.batches == [[b"plug"], [b"kept"]]
    assert engine.counts["cancelled"] == 1
    assert engine.counts["expired"] == 2
    until(lambda: engine.load == (0, 0))  # the plug's answer is made on another thread


def test_a_full_queue_refuses_at_once_and_says_when_to_return(make, runner):
    engine = make(queue_items=4)
    runner.hold(engine)
    futures = [engine.submit(packet=b"x") for _ in range(3)]
    with pytest.raises(QueueFull) as caught:  # now, while the device stands still
        engine.submit(packet=b"one too many")
    assert 0 < caught.value.retry_after_ms <= 5000
    runner.gate.set()
    wait(futures, 60)
    assert engine.submit(packet=b"again").result(60)
    assert engine.counts["rejected"] == 1


def test_beyond_two_batches_the_queue_is_bounded_by_the_time_that_its_work_takes(make, runner):
    engine = make(batch=BatchLimits(items=2), max_wait_s=0.5)
    runner.hold(engine)
    engine._ledger.item_s = 0.2
    for _ in range(3):
        engine.submit(packet=b"x")
    with pytest.raises(QueueFull) as caught:
        engine.submit(packet=b"x")
    assert caught.value.retry_after_ms == 400
    engine._ledger.item_s = 0.001
    for _ in range(20):
        engine.submit(packet=b"x")


def test_the_queue_is_bounded_in_bytes_but_takes_one_large_item(make, runner):
    engine = make(queue_bytes=100)
    assert engine.submit(packet=b"x" * 500).result(60)
    runner.hold(engine)
    engine.submit(packet=b"x" * 90)
    with pytest.raises(QueueFull):
        engine.submit(packet=b"x" * 90)


def image_of(megapixels: int) -> bytes:
    """A PNG's header; its pixels would take 4 MB a megapixel."""
    return png_header(1000 * megapixels, 1000)


def test_pixels_are_counted_before_they_are_decoded(runner, tiny_clip):
    """280 kB can be 88 megapixels: a few such requests must not fill the memory."""
    held, started = threading.Event(), threading.Semaphore(0)

    class Slow(Intake):
        def prepare(self, packet, image_file):
            started.release()
            assert held.wait(60)
            return super().prepare(packet, image_file)

    limits = EngineLimits(pixel_bytes=100_000_000, decode_threads=2)
    with Engine(runner, FixedModels(Slow([]), HeadCache(tiny_clip)), limits, log_errors=False) as engine:
        futures = [engine.submit(image_file=image_of(20))]  # 80 MB
        assert started.acquire(timeout=60)
        with pytest.raises(QueueFull):
            engine.submit(image_file=image_of(6))
        futures += [engine.submit(image_file=image_of(4)), engine.submit(image_file=b"no image at all")]
        assert engine.load[0] == 3
        held.set()
        for future in futures:
            with pytest.raises(ImageError):
                future.result(60)
        assert engine.submit(image_file=image_of(80)).exception(60)  # the only one is taken, however large


def test_places_of_callers_who_left_are_given_to_others(make, runner):
    engine = make(queue_items=3)
    runner.hold(engine)
    gone = [engine.submit(packet=b"gone") for _ in range(2)]
    until(lambda: len(engine._queue) == 2)
    for future in gone:
        future.cancel()
    future = engine.submit(packet=b"new")
    runner.gate.set()
    assert future.result(60)


@pytest.mark.parametrize("poison", [b"poison", b"nan"])
def test_one_poison_item_fails_alone(make, runner, poison):
    engine = make()
    runner.hold(engine)
    names = [b"a", b"b", b"c", poison, b"e", b"f", b"g"]
    futures = [engine.submit(packet=name) for name in names]
    until(lambda: len(engine._queue) == len(names))
    runner.gate.set()
    for name, future in zip(names, futures, strict=True):
        if name == poison:
            with pytest.raises(InferenceFailed):
                future.result(60)
        else:
            assert future.result(60).embedding.shape == (32,)


def test_bad_input_and_bugs_in_decoding_fail_alone_with_types(make):
    engine = make()
    futures = [engine.submit(packet=name) for name in (b"bad", b"bug", b"good")]
    with pytest.raises(MalformedPacket, match="on purpose"):
        futures[0].result(60)
    with pytest.raises(InferenceFailed, match="ZeroDivisionError"):
        futures[1].result(60)
    assert futures[2].result(60)
    for wrong in ({}, {"packet": b"x", "image_file": b"y"}):
        with pytest.raises(InvalidRequest):
            engine.submit(**wrong)
    assert engine.load == (0, 0)


def test_a_new_head_is_built_once_for_all_who_wait_for_it(make):
    engine = make()
    answers = [engine.submit(packet=b"x", labels=LABELS) for _ in range(20)]
    assert all(future.result(60).predictions for future in answers)
    assert engine.heads.counts["builds"] == 1


def test_a_failing_text_tower_fails_its_callers_not_the_engine(make, monkeypatch):
    engine = make()
    monkeypatch.setattr(engine.heads, "load", lambda *_: 1 / 0)
    with pytest.raises(InferenceFailed):
        engine.submit(packet=b"x", labels=("broken",)).result(60)
    monkeypatch.undo()
    assert engine.submit(packet=b"x", labels=("fine",)).result(60)


def test_texts_raw_and_in_templates(make, tiny_clip):
    engine = make(max_prompts=5)
    np.testing.assert_allclose(engine.submit_texts(["cat", "dog"]).result(60), tiny_clip.encode_texts(["cat", "dog"]))
    got = engine.submit_texts(["cat"], templates=["a {}.", "the {}."]).result(60)
    np.testing.assert_allclose(got, HeadCache(tiny_clip).load(("cat",), ("a {}.", "the {}.")).classes)
    with pytest.raises(LabelError, match="prompts"):
        engine.submit_texts(["a", "b", "c"], templates=["a {}.", "the {}."])


def test_close_answers_everything_accepted_and_refuses_the_rest(make, runner):
    engine = make()
    runner.hold(engine)
    futures = [engine.submit(packet=b"x", labels=LABELS) for _ in range(10)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    until(lambda: engine._ledger.closing)
    with pytest.raises(ShuttingDown):
        engine.submit(packet=b"late")
    runner.gate.set()
    closer.join(60)
    assert not closer.is_alive()
    assert all(future.result(0).predictions for future in futures)


def test_close_with_a_limit_resolves_what_it_cannot_answer(make, runner):
    engine = make()
    futures = [runner.hold(engine)] + [engine.submit(packet=b"x", labels=LABELS) for _ in range(3)]
    assert engine.close(timeout_s=0.05) is False
    for future in futures:
        with pytest.raises(ShuttingDown):
            future.result(0)


def test_hammering_from_many_threads_settles_every_future(make, runner):
    engine = make(queue_items=32, batch=BatchLimits(items=7), decode_threads=3)
    outcomes = []

    def caller(seed):
        rng = np.random.default_rng(seed)
        for n in range(40):
            try:
                future = engine.submit(
                    packet=[b"ok", b"bad", b"poison"][rng.choice(3, p=[0.8, 0.1, 0.1])],
                    labels=LABELS[: rng.integers(0, 4)],
                    deadline=time.monotonic() + rng.choice([0.001, 5]),
                )
            except QueueFull:
                outcomes.append("full")
                time.sleep(0.001)
                continue
            if n % 5 == 0:
                future.cancel()
            try:
                future.result(60)
                outcomes.append("answered")
            except (CancelledError, MalformedPacket, InferenceFailed, DeadlinePassed) as error:
                outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 320
    assert outcomes.count("answered") > 50
    until(lambda: engine.load == (0, 0))


def test_the_queue_ends_only_when_it_is_empty():
    queue = DeadlineQueue(lambda item: item != "unwanted")
    for name in ("a", "unwanted", "b"):
        queue.put(name, 1.0, 1)
    queue.close()
    assert queue.take(BatchLimits(items=2)) == ["a"]
    assert queue.take(BatchLimits(items=2)) == ["b"]
    assert queue.take(BatchLimits()) is None


def test_observers_hear_of_an_item_before_its_caller_does(make, runner):
    engine, heard = make(), []

    class Order(Observer):
        def settled(self, item, outcome, value):
            heard.append((outcome, item.future.done()))

    engine.observers.add(Order())
    engine.submit(packet=b"x").result(60)
    with pytest.raises(ThinwireError):
        engine.submit(packet=b"bad").result(60)
    assert heard == [("answered", False), ("failed", False)]
