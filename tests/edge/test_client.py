"""The client against a real gRPC server with canned answers: what is sent, retried, refused, and told."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest

from edge import AsyncClient, Client
from edge.errors import (
    ClientClosed,
    ConnectionOptionsError,
    Refused,
    ServerTimeout,
    ServerUnreachable,
    reason_of,
)
from edge.line.uplink import Line
from tests.edge.canned import Canned, after, answer, refuse, serve
from tests.tiny_bundle import make_tiny_bundle, photo, synthetic_views
from tests.waiting import until, until_async
from thinwire.errors import ImageError, LabelError, RateError, UnknownBundle
from thinwire.packet import Packet

LABELS = ["cat", "dog", "car"]
UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
FRAME = synthetic_views(1, 64, seed=5)[0]


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    return photo(tmp_path_factory.mktemp("photos"), "photo.jpg")


# ---------------------------------------------------------------- one image


def test_an_answer_holds_predictions_bytes_and_times(client, canned, jpeg, tiny_bundle):
    result = client.classify(jpeg, [" cat", "dog", "", "car", "cat"], top_k=2, prompt_set="80")
    assert [each.label for each in result.predictions] == ["cat", "dog"]
    assert result.best.probability == 0.5
    assert result.best.similarity == pytest.approx(0.3)
    assert (result.clip, result.layers, result.server.batch_size) == ("canned", 2, 1)
    assert result.round_trip_ms > 0
    parts = (result.decode_image_ms, result.preprocess_ms, result.encode_ms, result.code_ms)
    assert min(parts) > 0
    assert result.edge_ms == pytest.approx(sum(parts))
    (request,) = canned.requests
    assert list(request.labels) == LABELS
    assert (request.prompt_set, request.top_k) == ("80", 2)
    assert len(request.image.packet) == result.packet_bytes
    sent = Packet.from_bytes(request.image.packet)
    assert sent == client.encoder.encode_image(jpeg, "mid").packet
    assert sent.model_id == tiny_bundle.model_id
    assert result.to_dict()["edge_ms"] == result.edge_ms


def test_rates_are_chosen_for_the_client_or_the_image(canned, tiny_bundle, jpeg):
    with Client(canned.address, tiny_bundle.path, rate="low") as client:
        assert client.classify(jpeg, LABELS).layers == 1
        assert client.classify(jpeg, LABELS, rate="high").layers == 3
        with pytest.raises(RateError, match="low, mid, high"):
            client.classify(jpeg, LABELS, rate="huge")
    with pytest.raises(RateError):
        Client(canned.address, tiny_bundle, rate="huge")
    assert len(canned.requests) == 2


def test_image_files_can_go_as_they_are(client, canned, jpeg):
    data = jpeg.read_bytes()
    result = client.classify_file(data, LABELS)
    assert canned.requests[0].image.image_file == data
    assert (result.packet_bytes, result.layers, result.edge_ms) == (len(data), 0, 0)


def test_what_is_wrong_here_is_told_before_anything_is_sent(client, canned, jpeg):
    with pytest.raises(LabelError):
        client.classify(jpeg, [])
    with pytest.raises(LabelError):
        client.classify(jpeg, "cat,dog")
    with pytest.raises(LabelError, match="prompt set"):
        client.classify(jpeg, LABELS, prompt_set="8")
    with pytest.raises(LabelError, match="top_k"):
        client.classify(jpeg, LABELS, top_k=0)
    with pytest.raises(ImageError, match="no such file"):
        client.classify("nowhere.jpg", LABELS)
    with pytest.raises(UnknownBundle):
        Client(canned.address, bundle="nonesuch")
    assert canned.requests == []


def test_one_channel_serves_all_calls_and_threads(client, canned):
    client.check()
    threads = [threading.Thread(target=client.classify, args=(FRAME, LABELS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(canned.requests) == 8
    assert len(canned.peers) == 1


def test_a_server_that_knows_no_handles_gets_labels_with_every_request(client, canned):
    labels = [f"something that looks like number {number}" for number in range(100)]
    for _ in range(3):
        client.classify(FRAME, labels)
    assert [list(each.labels) for each in canned.requests] == [labels] * 3


# ---------------------------------------------------------------- retries, deadlines, refusals


def test_an_unavailable_server_is_asked_again(client, canned):
    canned.script.extend([refuse(UNAVAILABLE, "moving house")] * 2)
    assert client.classify(FRAME, LABELS).best.label == "cat"
    assert len(canned.requests) == 3


def test_a_full_queue_is_asked_again_when_it_said(client, canned):
    canned.script.append(refuse(EXHAUSTED, "the queue is full", "QUEUE_FULL", pushback_ms=700))
    assert client.classify(FRAME, LABELS).best.label == "cat"
    first, second = canned.times
    assert 0.65 < second - first < 2.0


def test_retries_end_and_the_reason_survives(client, canned):
    canned.usual = refuse(EXHAUSTED, "the queue is full: send less", "QUEUE_FULL", pushback_ms=10)
    with pytest.raises(Refused, match="the queue is full: send less") as caught:
        client.classify(FRAME, LABELS)
    assert caught.value.server_reason == reason_of(caught.value) == "QUEUE_FULL"
    assert len(canned.requests) == 4


def test_other_refusals_are_not_repeated(client, canned):
    canned.usual = refuse(grpc.StatusCode.INVALID_ARGUMENT, "bit flip in the packet", "BAD_PACKET")
    with pytest.raises(Refused, match="bit flip") as caught:
        client.classify(FRAME, LABELS)
    assert caught.value.server_reason == "BAD_PACKET"
    canned.usual = refuse(grpc.StatusCode.INTERNAL, "no details")
    with pytest.raises(Refused) as caught:
        client.classify(FRAME, LABELS)
    assert caught.value.server_reason == "INTERNAL"
    assert len(canned.requests) == 2


def test_a_stopping_server_is_no_missing_server(client, canned):
    canned.usual = refuse(UNAVAILABLE, "the server is stopping", "SHUTTING_DOWN")
    with pytest.raises(Refused, match="stopping"):
        client.classify(FRAME, LABELS)


def test_the_deadline_holds_and_names_itself(canned, tiny_bundle):
    canned.usual = after(60)
    with Client(canned.address, tiny_bundle, timeout_s=1.5) as client:
        # The answer would come after a minute: an error says that nobody waited for it
        with pytest.raises(ServerTimeout, match=r"1\.5 s: raise --timeout|1\.5 s.*--timeout"):
            client.classify(FRAME, LABELS)
        assert client.check().clip.name == "canned"


def test_no_server_names_the_command_that_starts_one(dead_address, tiny_bundle):
    with Client(dead_address, tiny_bundle, timeout_s=5) as client:
        for call in (client.check, lambda: client.classify(FRAME, LABELS)):
            with pytest.raises(ServerUnreachable, match="thinwire-cloud serve") as caught:
                call()
            assert dead_address in str(caught.value)


def test_a_silent_address_is_unreachable_too(tiny_bundle):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with Client(address, tiny_bundle, timeout_s=0.5) as client, pytest.raises(ServerUnreachable, match="silence"):
            client.check()


def test_another_grpc_server_is_told_apart(tiny_bundle):
    with serve(None) as address, Client(address, tiny_bundle) as client:
        with pytest.raises(Refused, match="no thinwire server"):
            client.check()
        with pytest.raises(Refused, match="no thinwire server"):
            client.classify(FRAME, LABELS)


def test_an_unknown_model_names_what_the_server_holds(canned, tmp_path):
    other = make_tiny_bundle(tmp_path / "other", size=32, name="other")
    canned.usual = refuse(grpc.StatusCode.NOT_FOUND, "no such model", "UNKNOWN_MODEL")
    held = canned.bundles[0]
    with Client(canned.address, other) as client:
        calls = (
            client.check,
            lambda: client.classify(FRAME, LABELS),
            lambda: (
                next(client.classify_many([FRAME], LABELS)).error.server_reason == "UNKNOWN_MODEL" and client.check()
            ),
        )
        for call in calls:
            with pytest.raises(Refused, match=rf"tiny \({held.model_id.hex()}\)") as caught:
                call()
            assert caught.value.server_reason == "UNKNOWN_MODEL"
            assert f"--bundle {other.path}" in str(caught.value)
        assert "tiny (" in str(next(client.classify_many([FRAME], LABELS)).error)


def test_a_closed_client_says_so(canned, tiny_bundle):
    client = Client(canned.address, tiny_bundle)
    client.close()
    for call in (client.check, lambda: client.classify(FRAME, LABELS)):
        with pytest.raises(ClientClosed):
            call()
    canned.usual = after(60)
    client = Client(canned.address, tiny_bundle)
    threading.Thread(target=lambda: (until(lambda: canned.requests), client.close()), daemon=True).start()
    with pytest.raises(ClientClosed):
        client.classify(FRAME, LABELS)


# ---------------------------------------------------------------- many images


def test_many_images_keep_their_order_and_fail_alone(client, canned, jpeg, tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    canned.script.extend([after(0.3), answer, refuse(grpc.StatusCode.INVALID_ARGUMENT, "odd", "BAD_PACKET"), answer])
    images = [jpeg, str(empty), FRAME, jpeg.read_bytes(), "nowhere.jpg", FRAME]
    outcomes = list(client.classify_many(images, LABELS, in_flight=1))
    assert [each.index for each in outcomes] == list(range(6))
    assert all(each.image is image for each, image in zip(outcomes, images))
    assert [each.ok for each in outcomes] == [True, False, True, False, False, True]
    assert [reason_of(each.error) for each in outcomes if not each.ok] == ["BAD_IMAGE", "BAD_PACKET", "BAD_IMAGE"]
    assert all((each.result is None) != (each.error is None) for each in outcomes)


def test_answers_in_order_or_as_they_come(client, canned):
    images = [FRAME, *[np.zeros_like(FRAME)] * 3]
    first = client.encoder.encode(FRAME, client.rate).packet.to_bytes()
    others, release = threading.Semaphore(0), threading.Event()

    def usual(request, context):
        if request.image.packet != first:
            others.release()
        elif not release.is_set():
            assert all(others.acquire(timeout=60) for _ in range(3))  # the answers of all others are on their way
        return answer(request)

    canned.usual = usual
    assert [each.index for each in client.classify_many(images, LABELS)] == [0, 1, 2, 3]

    def held(request, context):
        assert request.image.packet != first or release.wait(60)
        return answer(request)

    canned.usual = held
    free = client.classify_many(images, LABELS, ordered=False)
    assert sorted(next(free).index for _ in range(3)) == [1, 2, 3]
    time.sleep(0.3)
    release.set()
    (last,) = free
    assert last.index == 0
    assert last.result.round_trip_ms > 300


@pytest.mark.parametrize("ordered", [True, False])
def test_few_are_on_their_way_at_a_time_even_of_endless_input(client, canned, ordered):
    canned.usual = after(0.03)
    taken = itertools.count()

    def endless():
        while True:
            next(taken)
            yield FRAME

    outcomes = client.classify_many(endless(), LABELS, in_flight=3, ordered=ordered)
    assert all(next(outcomes).ok for _ in range(12))
    outcomes.close()
    assert canned.most == 3
    assert next(taken) <= 12 + 3


def test_what_would_fail_every_image_raises_before_the_first(client):
    def never():
        raise AssertionError("an image was read")
        yield

    for error, options in (
        (LabelError, {"labels": []}),
        (RateError, {"labels": LABELS, "rate": "huge"}),
        (ConnectionOptionsError, {"labels": LABELS, "in_flight": 0}),
    ):
        with pytest.raises(error):
            client.classify_many(never(), **options)


# ---------------------------------------------------------------- the line


@pytest.mark.parametrize(
    "server", ["", "host", "host:", ":50051", "host:port", "host:0", "host:70000", "::1:50051", "a b:1"]
)
def test_an_address_is_checked_before_a_model_is_loaded(server):
    with pytest.raises(ConnectionOptionsError):
        Client(server, bundle="nonesuch")


def test_good_addresses_and_bad_options():
    for server in ("127.0.0.1:1", "localhost:50051", "[::1]:50051", "edge-7.example.org:65535"):
        assert Line(server).server == server
    for options in (
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"token": "two words"},
        {"token": "", "tls": True},
        {"token": "secret", "server": "10.0.0.5:50051"},
    ):
        with pytest.raises(ConnectionOptionsError):
            Line(**{"server": "127.0.0.1:50051", **options})
    Line("10.0.0.5:50051", token="secret", tls=True)


def test_a_certificate_that_is_none_is_named(tmp_path, tiny_bundle):
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(ConnectionOptionsError, match=path.name):
            Client("127.0.0.1:1", tiny_bundle, root_certificate=path)
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(ConnectionOptionsError, match="PEM"):
        Client("127.0.0.1:1", tiny_bundle, root_certificate=junk)


def test_tls_and_token_reach_the_server_and_its_lack_is_explained(tmp_path, tiny_bundle):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, pem = tmp_path / "key.pem", tmp_path / "ca.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    extra = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    servicer = Canned([tiny_bundle])
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    with serve(servicer, credentials) as address:
        with Client(address, tiny_bundle, root_certificate=pem, token="s3cret") as client:
            assert client.check().clip.name == "canned"
            assert client.classify(FRAME, LABELS).best.label == "cat"
        assert [each["authorization"] for each in servicer.metadata] == ["Bearer s3cret"] * 2
        servicer.usual = refuse(grpc.StatusCode.UNAUTHENTICATED, "who are you")
        with Client(address, tiny_bundle, root_certificate=pem) as client, pytest.raises(Refused, match="--token-file"):
            client.classify(FRAME, LABELS)
        public = Client(address, tiny_bundle, tls=True, timeout_s=20)  # no public authority has signed that one
        with public as client, pytest.raises(ServerUnreachable, match="--tls-ca"):
            client.check()


def test_a_proxy_in_the_environment_does_not_catch_loopback(canned, tiny_bundle, monkeypatch, dead_address):
    monkeypatch.setenv("http_proxy", f"http://{dead_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(canned.address, tiny_bundle) as client:
        assert client.check().clip.name == "canned"
    assert os.environ["http_proxy"]


# ---------------------------------------------------------------- asyncio


async def test_the_async_twin_answers_the_same(canned, tiny_bundle, client, jpeg):
    async with AsyncClient(canned.address, tiny_bundle) as twin:
        assert (await twin.check()).clip.name == "canned"
        results = await asyncio.gather(*(twin.classify(jpeg, LABELS, top_k=1) for _ in range(6)))
        by_file = await twin.classify_file(jpeg.read_bytes(), LABELS)
    assert by_file.layers == 0
    same = client.classify(jpeg, LABELS, top_k=1)
    assert all(each.predictions == same.predictions for each in results)
    assert canned.requests[0].image.packet == canned.requests[-1].image.packet


async def test_the_async_twin_fails_the_same(canned, tiny_bundle, dead_address, tmp_path):
    canned.script.append(refuse(UNAVAILABLE, "moving house"))
    twin = AsyncClient(canned.address, tiny_bundle, timeout_s=2)
    assert (await twin.classify(FRAME, LABELS)).best.label == "cat"
    with pytest.raises(ImageError):
        await twin.classify("nowhere.jpg", LABELS)
    canned.script.append(refuse(grpc.StatusCode.INVALID_ARGUMENT, "bit flip", "BAD_PACKET"))
    with pytest.raises(Refused, match="bit flip"):
        await twin.classify(FRAME, LABELS)
    canned.script.append(after(60))
    with pytest.raises(ServerTimeout):
        await twin.classify(FRAME, LABELS)
    canned.script.append(after(60))
    before = len(canned.requests)
    waiting = asyncio.create_task(twin.classify(np.zeros_like(FRAME), LABELS))
    await until_async(lambda: len(canned.requests) > before)
    await twin.close()
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        await twin.classify(FRAME, LABELS)
    async with AsyncClient(dead_address, tiny_bundle) as lost:
        with pytest.raises(ServerUnreachable, match="thinwire-cloud serve"):
            await lost.check()
    canned.usual = refuse(grpc.StatusCode.NOT_FOUND, "no such model", "UNKNOWN_MODEL")
    other = make_tiny_bundle(tmp_path / "other", size=32, name="other")
    async with AsyncClient(canned.address, other) as stranger:
        with pytest.raises(Refused, match=r"it holds: tiny \("):
            await stranger.classify(FRAME, LABELS)


async def test_the_async_twin_takes_many_from_either_kind_of_iterable(canned, tiny_bundle, jpeg):
    canned.usual = after(0.05)
    taken = itertools.count()

    async def frames():
        while True:
            next(taken)
            yield FRAME

    async with AsyncClient(canned.address, tiny_bundle) as twin:
        images = [jpeg, "nowhere.jpg", FRAME, jpeg]
        outcomes = [each async for each in twin.classify_many(images, LABELS, in_flight=2)]
        assert [each.index for each in outcomes] == [0, 1, 2, 3]
        assert [each.ok for each in outcomes] == [True, False, True, True]
        assert reason_of(outcomes[1].error) == "BAD_IMAGE"
        endless = twin.classify_many(frames(), LABELS, in_flight=3, ordered=False)
        for _ in range(9):
            assert (await anext(endless)).ok
        await endless.aclose()
        assert next(taken) <= 9 + 3
        assert canned.most <= 3
        for error, options in ((RateError, {"rate": "huge"}), (ConnectionOptionsError, {"in_flight": 0})):
            with pytest.raises(error):
                await anext(twin.classify_many([FRAME], LABELS, **options))
