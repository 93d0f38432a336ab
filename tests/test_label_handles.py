"""Label handles from the real edge to the real cloud: labels cross once, also over a restart, and nobody notices."""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.tiny_bundle import photo, synthetic_views

pytest.importorskip("torch")

import grpc

from cloud.assemble import open_engine
from cloud.server import background_server
from edge import AsyncClient, Client
from edge.cli import main
from edge.uplink import Line, Uplink
from tests.cloud.tiny_clip import write_tiny_clip
from thinwire.v1 import inference_pb2_grpc

LABELS = [f"something that looks like number {number}" for number in range(100)]
VIEWS = list(synthetic_views(5, 64, seed=5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_bundle_with_decoder):
    folder = tmp_path_factory.mktemp("handles")
    clip = write_tiny_clip(folder / "tiny-random-clip")
    with open_engine(str(clip), [tiny_bundle_with_decoder.path], "cpu", 1, cache_dir=folder / "heads") as engine:
        yield engine


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


def test_run_names_the_handle_on_every_stream_after_its_first(engine, tiny_bundle_with_decoder, tmp_path, capsys):
    """Streams that break after each answer; then the server starts anew: still each frame has one answer."""
    from concurrent.futures import ThreadPoolExecutor

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        photo(folder, f"{number}.jpg", seed=number)
    seen = []

    class Relay(inference_pb2_grpc.InferenceServiceServicer):
        """Passes one frame of each stream on, then cuts the stream."""

        def GetServerInfo(self, request, context):
            return uplink.info()

        def RegisterLabels(self, request, context):
            return uplink.register(request)

        def ClassifyStream(self, request_iterator, context):
            message = next(request_iterator)
            seen.append(message.request)
            if len(seen) == 4:
                restart()
            yield next(iter(uplink.stream(iter([message]))))
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    relay = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Relay(), relay)
    port = relay.add_insecure_port("127.0.0.1:0")
    words = ["run", str(folder), "--labels", ",".join(LABELS), "--server", f"127.0.0.1:{port}", "--summary"]
    words += ["--bundle", str(tiny_bundle_with_decoder.path), "--out", str(tmp_path / "out.jsonl")]
    words += ["--spool", str(tmp_path / "spool.db"), "--in-flight", "2"]
    with contextlib.ExitStack() as stack:
        engine.close = lambda *_: True
        stack.callback(lambda: engine.__dict__.pop("close"))
        server = stack.enter_context(contextlib.ExitStack())
        address = server.enter_context(background_server(engine))
        uplink = stack.enter_context(Uplink(Line(address)))

        def restart():
            server.close()
            server.enter_context(background_server(engine, address))

        relay.start()
        stack.callback(lambda: relay.stop(0).wait(5))
        assert main(words) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == facts["answered"] == 6
    by_handle = [bool(each.label_set) for each in seen]
    assert by_handle[:4] == [False, True, True, True]
    assert facts["labels_saved_bytes"] > 0
