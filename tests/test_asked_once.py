"""Labels and answers cross once, from the real edge to the real cloud, over cut streams and a server started anew."""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.tiny_bundle import photo, synthetic_views

pytest.importorskip("torch")

from cloud.front.server import background_server
from edge import AsyncClient, Client
from edge.cli import main
from edge.line.label_handles import MAX_QUESTIONS, LabelHandles
from tests.cloud.tiny_engine import tiny_engine
from tests.relay import Relay
from thinwire.v1 import inference_pb2 as pb

LABELS = [f"something that looks like number {number}" for number in range(100)]
VIEWS = list(synthetic_views(5, 64, seed=5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_bundle_with_decoder):
    with tiny_engine(tmp_path_factory.mktemp("handles"), tiny_bundle_with_decoder) as engine:
        yield engine


@pytest.fixture
def run(tiny_bundle_with_decoder, tmp_path, capsys):
    """`thinwire-edge run` over six photographs through a relay → (result lines, summary)."""

    def run(relay: Relay, labels: list[str]):
        folder = tmp_path / "photos"
        folder.mkdir()
        for number in range(6):
            photo(folder, f"{number}.jpg", seed=number)
        words = ["run", str(folder), "--labels", ",".join(labels), "--summary", "--in-flight", "2"]
        words += ["--bundle", str(tiny_bundle_with_decoder.path), "--out", str(tmp_path / "out.jsonl")]
        with relay.running() as address:
            assert main([*words, "--spool", str(tmp_path / "spool.db"), "--server", address]) == 0
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        return lines, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def restarting(engine):
    """A function that starts the server on the same address, in place of the one before: it holds no label sets."""
    with contextlib.ExitStack() as running:
        engine.close = lambda *_: True  # the engine outlives its servers
        running.callback(lambda: engine.__dict__.pop("close"))
        address = "127.0.0.1:0"

        def start() -> str:
            nonlocal address
            now.close()
            address = now.enter_context(background_server(engine, address))
            return address

        now = running.enter_context(contextlib.ExitStack())
        yield start


def test_labels_cross_once_and_then_by_handle(restarting, tiny_bundle_with_decoder):
    with Client(restarting(), tiny_bundle_with_decoder) as client:
        results = [client.classify(view, LABELS, top_k=3) for view in VIEWS]
        labels_bytes = client.handles.counts.registered_bytes
        whole, rest = results[0], results[1:]
        assert whole.request_bytes > whole.packet_bytes + labels_bytes
        for result in rest:
            assert result.request_bytes < result.packet_bytes + 50
        counts = client.handles.counts
        assert (counts.registered, counts.by_handle) == (1, 4)
        assert counts.saved_bytes == 4 * (labels_bytes - 34)
        again = client.classify(VIEWS[0], LABELS, top_k=3)
        assert whole.request_bytes - again.request_bytes == labels_bytes - 34  # what is counted is what is saved
        assert [each.label for each in again.predictions] == [each.label for each in whole.predictions]


def test_after_a_restart_labels_are_registered_again_and_no_image_fails(restarting, tiny_bundle_with_decoder):
    with Client(restarting(), tiny_bundle_with_decoder) as client:
        list(client.classify_many(VIEWS, LABELS, in_flight=2))
        assert client.handles.counts.registered == 1
        restarting()
        outcomes = list(client.classify_many(VIEWS, LABELS, in_flight=4))
        assert [each.error for each in outcomes] == [None] * len(VIEWS)
        assert client.handles.counts.registered == 2  # once, though four images met the restart
        restarting()
        assert client.classify(VIEWS[0], LABELS).best.label == outcomes[0].result.best.label
        assert client.handles.counts.registered == 3


async def test_the_async_client_does_the_same(restarting, tiny_bundle_with_decoder):
    import asyncio

    async with AsyncClient(restarting(), tiny_bundle_with_decoder) as client:
        for view in VIEWS[:3]:
            result = await client.classify(view, LABELS)
        assert (client.handles.counts.registered, client.handles.counts.by_handle) == (1, 2)
        await asyncio.to_thread(restarting)
        results = await asyncio.gather(*(client.classify(view, LABELS) for view in VIEWS))
        assert [each.label for each in results[2].predictions] == [each.label for each in result.predictions]
        assert client.handles.counts.registered == 2


def test_short_labels_and_lone_images_go_as_they_are(restarting, tiny_bundle_with_decoder):
    with Client(restarting(), tiny_bundle_with_decoder) as client:
        for view in VIEWS:
            client.classify(view, ["cat", "dog"])
        client.classify(VIEWS[0], LABELS)
        assert (client.handles.counts.registered, client.handles.counts.by_handle) == (0, 0)


def test_run_names_the_handle_on_every_stream(engine, run):
    """Streams that break after each answer; then the server starts anew: still each frame has one answer."""
    relay = Relay(engine)
    relay.before = lambda number: relay.restart() if number == 3 else None
    lines, facts = run(relay, LABELS)
    assert len(lines) == len({line["key"] for line in lines}) == facts["answered"] == 6
    assert [bool(each.label_set) for each in relay.requests[:4]] == [
        True,
        True,
        True,
        True,
    ]  # registered before the first frame
    assert facts["labels_saved_bytes"] > 0


def test_answers_that_the_link_loses_are_given_again_and_not_computed_again(engine, run):
    """Every other answer is lost on its way: its frame is sent again, and the cloud counts it once."""
    relay = Relay(engine)
    relay.swallows = lambda number: number % 2 == 0
    before = dict(engine.counts)
    lines, facts = run(relay, ["cat", "dog"])
    assert len(lines) == len({line["key"] for line in lines}) == facts["answered"] == 6
    assert len(relay.requests) > 6
    assert engine.counts["answered"] - before["answered"] == 6
    assert len({each.frame_id for each in relay.requests}) == 6


def test_a_program_that_asks_with_other_labels_each_time_fills_no_memory():
    handles = LabelHandles()

    def ask(number):
        labels = [f"label {number} of many {place}" for place in range(8)]
        return handles.registration(pb.ClassifyRequest(labels=labels, prompt_set="7"))

    assert ask(0) is None
    assert ask(0) is not None  # asked again: worth a handle
    for number in range(1, MAX_QUESTIONS + 1):
        ask(number)
    assert ask(0) is None  # forgotten, so met for the first time
    assert len(handles._questions) == MAX_QUESTIONS
