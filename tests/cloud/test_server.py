"""The gRPC front against a real server on a free port: answers, refusals with reasons, streams, overload, health."""

from __future__ import annotations

import gc
import queue
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from cloud.engine.items import EngineLimits
from cloud.engine.text_heads import HeadCache
from cloud.front.server import ServerOptions
from tests.cloud.served import Served, classify, jpeg, refused
from tests.waiting import until
from thinwire.packet import MAX_PACKET_BYTES, Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc


@pytest.fixture(scope="module")
def served(tiny_clip, tiny_codec):
    """One server for all tests that leave it as they found it."""
    server = Served(tiny_clip, tiny_codec)
    yield server
    server.close()


@pytest.fixture
def packet(make_packet):
    return make_packet(seed=0)


def resealed(data: bytearray) -> bytes:
    """The packet's bytes with a fitting CRC, so that deeper checks are reached."""
    data[-4:] = google_crc32c.value(bytes(data[:-4])).to_bytes(4, "little")
    return bytes(data)


# ---------------------------------------------------------------- answers


def test_server_info_names_models_and_limits(served, tiny_clip, tiny_codec):
    info = served.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
    assert (info.clip.name, info.clip.embed_dim, info.clip.image_size) == (tiny_clip.name, 32, 64)
    assert info.device == tiny_clip.device
    assert [(b.name, b.model_id) for b in info.bundles] == [(tiny_codec.card.name, tiny_codec.model_id)]
    assert {rate.name: rate.layers for rate in info.bundles[0].rates} == tiny_codec.rates
    assert list(info.prompt_sets) == ["1", "7", "80"]
    assert info.limits.max_packet_bytes == MAX_PACKET_BYTES


def test_classify_is_synthesis_then_clip_then_head(served, tiny_clip, tiny_codec, make_packet):
    import torch

    import synthesis

    n_layers = 1
    data = make_packet(seed=5, n_layers=n_layers)
    got = served.stub.Classify(classify(data, prompt_set="1", top_k=2, frame_id=77), timeout=60)
    symbols = torch.from_numpy(tiny_codec.coder.decode(Packet.from_bytes(data).layers))[None].float()
    with torch.inference_mode():
        image = synthesis.load(tiny_codec, "cpu")(symbols, torch.tensor([n_layers]))
    vector = tiny_clip.encode_images(image).numpy()[0]
    cosines = HeadCache(tiny_clip).load(("cat", "dog", "car"), ("a photo of a {}.",)).classes @ vector
    assert got.predictions[0].similarity == pytest.approx(float(cosines.max()), abs=1e-4)
    best = int(cosines.argmax())
    assert (got.predictions[0].label, got.predictions[0].index) == (["cat", "dog", "car"][best], best)
    assert len(got.predictions) == 2
    assert sum(p.probability for p in got.predictions) <= 1.0001
    assert (got.frame_id, got.model.bundle, got.model.layers) == (77, tiny_codec.card.name, n_layers)
    assert got.model.clip == tiny_clip.name
    assert got.timing.batch_size == 1
    assert got.timing.total_ms > 0


def test_an_index_is_the_place_in_the_request_with_its_empty_and_repeated_labels(served, packet):
    got = served.stub.Classify(classify(packet, labels=["", "cat", "cat", " dog"]), timeout=60)
    assert {p.label: p.index for p in got.predictions} == {"cat": 1, "dog": 3}


def test_an_image_file_takes_the_same_way(served, tiny_clip):
    got = served.stub.Embed(pb.EmbedRequest(image=pb.ImageInput(image_file=jpeg()), frame_id=9), timeout=60)
    assert np.linalg.norm(got.embedding.values) == pytest.approx(1, abs=1e-5)
    assert (got.model.bundle, got.model.layers, got.frame_id) == ("", 0, 9)
    assert served.stub.Classify(classify(image_file=jpeg()), timeout=60).predictions


def test_every_prefix_of_a_packet_is_answered(served, tiny_codec, make_packet):
    whole = Packet.from_bytes(make_packet(seed=1))
    for n in range(1, len(whole.layers) + 1):
        got = served.stub.Classify(classify(whole.prefix(n).to_bytes()), timeout=60)
        assert got.model.layers == n


def test_encode_text_raw_and_with_templates(served, tiny_clip):
    raw = served.stub.EncodeText(pb.EncodeTextRequest(texts=["a cat", "a cat"]), timeout=60)
    np.testing.assert_allclose(raw.embeddings[1].values, tiny_clip.encode_texts(["a cat"])[0], atol=1e-5)
    mixed = served.stub.EncodeText(pb.EncodeTextRequest(texts=["cat"], prompt_set="7"), timeout=60)
    assert np.linalg.norm(mixed.embeddings[0].values) == pytest.approx(1, abs=1e-5)
    for texts in ([], ["fine", " "], ["x" * 5000], ["x"] * 2000):
        request = pb.EncodeTextRequest(texts=texts)
        code, reason, _ = refused(lambda request=request: served.stub.EncodeText(request, timeout=60))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


# ---------------------------------------------------------------- bad input


def _bad_packets(good: bytes) -> dict[str, tuple[bytes, str]]:
    flipped, version, model = (bytearray(good) for _ in range(3))
    flipped[len(good) // 2] ^= 4
    version[2] = 9
    model[4:8] = b"\xde\xad\xbe\xef"
    return {
        "empty": (b"", "BAD_PACKET"),
        "not a packet": (b"hello, world, this is no packet", "BAD_PACKET"),
        "truncated": (good[:-3], "BAD_PACKET"),
        "header only": (good[:8], "BAD_PACKET"),
        "bit flipped": (bytes(flipped), "BAD_PACKET"),
        "longer": (good + b"\0", "BAD_PACKET"),
        "unknown version": (resealed(version), "BAD_PACKET"),
        "garbage payload with a right CRC": (Packet(good[4:8], (b"\xff" * 500,)).to_bytes(), "BAD_PACKET"),
        "more layers than the model has": (Packet(good[4:8], (b"", b"", b"")).to_bytes(), "BAD_PACKET"),
        "unknown model": (resealed(model), "UNKNOWN_MODEL"),
        "oversize": (good + bytes(MAX_PACKET_BYTES), "TOO_LARGE"),
    }


@pytest.mark.parametrize("name", list(_bad_packets(bytes(40))))
def test_bad_packets_are_refused_with_a_reason(served, packet, name):
    data, reason = _bad_packets(packet)[name]
    code, got, error = refused(lambda: served.stub.Classify(classify(data), timeout=60))
    assert got == reason
    assert code is (grpc.StatusCode.NOT_FOUND if reason == "UNKNOWN_MODEL" else grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details()


def test_every_single_bit_flip_is_refused_and_hurts_nobody(served, packet):
    def flip(bit):
        data = bytearray(packet)
        data[bit // 8] ^= 1 << bit % 8
        return refused(lambda: served.stub.Classify(classify(bytes(data)), timeout=60))[1]

    bits = range(0, len(packet) * 8, max(1, len(packet) * 8 // 150))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(flip, bits)) <= {"BAD_PACKET", "TOO_LARGE"}
    assert served.stub.Classify(classify(packet), timeout=60).predictions


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"labels": []}, "BAD_LABELS"),
        ({"labels": ["", "  "]}, "BAD_LABELS"),
        ({"labels": [f"label {n}" for n in range(20_001)]}, "BAD_LABELS"),
        ({"labels": [f"label {n}" for n in range(3000)], "prompt_set": "80"}, "BAD_LABELS"),
        ({"labels": ["x" * 10_000]}, "BAD_LABELS"),
        ({"labels": ["bell \x07"]}, "BAD_LABELS"),
        ({"prompt_set": "8"}, "BAD_LABELS"),
        ({"templates": ["no place for a label"]}, "BAD_LABELS"),
    ],
)
def test_bad_labels_and_prompts_are_refused(served, packet, fields, reason):
    code, got, _ = refused(lambda: served.stub.Classify(classify(packet, **fields), timeout=60))
    assert (code, got) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


@pytest.mark.parametrize("data", [b"", b"no image", jpeg()[:500], b"\xff\xd8\xff" + bytes(100)])
def test_bad_image_files_are_refused(served, data):
    code, reason, _ = refused(lambda: served.stub.Classify(classify(image_file=data), timeout=60))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")


def test_a_request_without_an_image_is_refused(served):
    code, reason, _ = refused(lambda: served.stub.Classify(pb.ClassifyRequest(labels=["cat"]), timeout=60))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refused(lambda: served.stub.Embed(pb.EmbedRequest(), timeout=60))[1] == "INVALID_REQUEST"


def test_over_size_image_files_are_refused_by_us_and_over_size_messages_by_grpc(serve):
    small = serve(options=ServerOptions(max_image_file_bytes=1000))
    assert refused(lambda: small.stub.Classify(classify(image_file=bytes(2000)), timeout=60))[1] == "TOO_LARGE"
    with pytest.raises(grpc.RpcError) as caught:
        small.stub.Classify(classify(image_file=bytes(6 << 20)), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---------------------------------------------------------------- load


def test_requests_that_wait_are_answered_in_one_batch(serve, make_packet):
    held = serve()
    first = held.hold(classify(make_packet(seed=0)))
    rest = [held.stub.Classify.future(classify(make_packet(seed=n), frame_id=n), timeout=60) for n in range(6)]
    until(lambda: len(held.engine._queue) == 6)
    held.runner.gate.set()
    assert first.result().timing.batch_size == 1
    assert [call.result().timing.batch_size for call in rest] == [6] * 6
    assert [call.result().frame_id for call in rest] == list(range(6))


def test_overload_is_refused_at_once_with_pushback(serve, packet):
    held = serve(limits=EngineLimits(queue_items=3))
    calls = [held.hold(classify(packet))] + [held.stub.Classify.future(classify(packet), timeout=60) for _ in range(2)]
    until(lambda: held.engine.load[0] == 3)
    # The device stands still, so an answer of any kind comes from a server that did not wait for it
    code, reason, error = refused(lambda: held.stub.Classify(classify(packet), timeout=60))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[1].Unpack(retry)
    held.runner.gate.set()
    assert all(call.result().predictions for call in calls)
    assert held.stub.Classify(classify(packet), timeout=60).predictions


def given_up(item) -> bool:
    return item.future.cancelled() or item.due <= time.monotonic()


def test_cancelled_and_expired_calls_cost_no_device_time(serve, packet):
    held = serve()
    first = held.hold(classify(packet))
    cancelled = held.stub.Classify.future(classify(packet), timeout=60)
    expired = held.stub.Classify.future(classify(packet), timeout=2)  # long enough to reach the queue
    until(lambda: len(held.engine._queue) == 2)
    cancelled.cancel()
    assert expired.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: sum(given_up(item) for item in held.engine._ledger.items) == 2)
    held.runner.gate.set()
    assert first.result().predictions
    assert held.stub.Classify(classify(packet), timeout=60).timing.batch_size == 1
    assert held.engine.counts["cancelled"] + held.engine.counts["expired"] == 2
    assert held.engine.counts["batched_items"] == 2


def test_one_poison_item_fails_alone(serve, make_packet, monkeypatch):
    held = serve()
    bad = make_packet(seed=99)
    poison = held.engine.intake.prepare(bad, None).array
    run = held.runner.runner.run

    def fragile(batch):
        if any(np.array_equal(item.array, poison) for item in batch):
            raise RuntimeError("this one breaks the device")
        return run(batch)

    monkeypatch.setattr(held.runner.runner, "run", fragile)
    first = held.hold(classify(make_packet(seed=0)))
    good = [held.stub.Classify.future(classify(make_packet(seed=n)), timeout=60) for n in range(1, 6)]
    broken = held.stub.Classify.future(classify(bad), timeout=60)
    until(lambda: len(held.engine._queue) == 6)
    held.runner.gate.set()
    assert all(call.result().predictions for call in [first, *good])
    code, reason, error = refused(broken.result)
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
    assert "breaks the device" not in error.details()  # the server's insides stay in its log


# ---------------------------------------------------------------- streams


def frames(*requests):
    return iter([pb.ClassifyStreamRequest(request=request) for request in requests])


def test_a_bad_frame_is_answered_by_its_error_and_the_stream_goes_on(served, packet):
    answers = served.stub.ClassifyStream(
        frames(
            classify(packet, frame_id=1, top_k=1),
            classify(b"broken", frame_id=2),
            pb.ClassifyRequest(frame_id=3),
            classify(packet, labels=["x" * 9999], frame_id=4),
            classify(packet, labels=["cat"], frame_id=5),
        ),
        timeout=60,
    )
    by_id = {answer.frame_id: answer for answer in answers}
    assert sorted(by_id) == [1, 2, 3, 4, 5]
    assert by_id[1].result.frame_id == 1
    assert [by_id[n].error.reason for n in (2, 3, 4)] == ["BAD_PACKET", "INVALID_REQUEST", "BAD_LABELS"]
    assert by_id[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert by_id[5].result.predictions[0].label == "cat"


def test_frames_without_labels_take_the_last_ones(served, packet):
    answers = served.stub.ClassifyStream(
        frames(
            classify(packet, labels=[], frame_id=1),
            classify(packet, labels=["only"], frame_id=2, top_k=1),
            classify(packet, labels=[], frame_id=3),
            classify(packet, labels=["new", "ones"], frame_id=4),
            classify(packet, labels=[], frame_id=5),
        ),
        timeout=60,
    )
    by_id = {answer.frame_id: answer for answer in answers}
    assert by_id[1].error.reason == "BAD_LABELS"
    assert [p.label for p in by_id[3].result.predictions] == ["only"]
    assert {p.label for p in by_id[5].result.predictions} == {"new", "ones"}


def test_a_stream_holds_at_most_its_window(serve, packet):
    held = serve(options=ServerOptions(stream_window=4))
    held.hold(classify(packet))
    answers = held.stub.ClassifyStream(frames(*[classify(packet, frame_id=n) for n in range(12)]), timeout=60)
    until(lambda: held.engine.load[0] == 1 + 4)
    time.sleep(0.2)  # time for a fifth frame, which must not come
    assert held.engine.load[0] == 1 + 4
    held.runner.gate.set()
    assert sorted(answer.frame_id for answer in answers) == list(range(12))


def test_a_full_queue_slows_a_stream_down_and_refuses_one_that_has_nothing_under_way(serve, make_packet):
    held = serve(limits=EngineLimits(queue_items=3))
    packets = [make_packet(seed=n) for n in range(12)]
    answers = held.stub.ClassifyStream(frames(*[classify(each) for each in packets]), timeout=60)
    assert [answer.WhichOneof("outcome") for answer in answers] == ["result"] * 12
    calls = [held.hold(classify(packets[0]))]
    calls += [held.stub.Classify.future(classify(each), timeout=60) for each in packets[:2]]
    until(lambda: held.engine.load[0] == 3)
    (answer,) = held.stub.ClassifyStream(frames(classify(packets[0])), timeout=60)
    assert (answer.error.reason, answer.error.retry_after_ms > 0) == ("QUEUE_FULL", True)
    held.runner.gate.set()
    assert all(call.result().predictions for call in calls)


def test_a_stream_that_breaks_off_leaves_nothing_behind(serve, packet):
    held = serve()
    held.hold(classify(packet))
    requests = queue.SimpleQueue()
    call = held.stub.ClassifyStream(iter(requests.get, None), timeout=60)
    for n in range(3):
        requests.put(pb.ClassifyStreamRequest(request=classify(packet, frame_id=n)))
    until(lambda: held.engine.load[0] == 4)
    call.cancel()
    requests.put(None)
    until(lambda: sum(item.future.cancelled() for item in held.engine._ledger.items) == 3)
    held.runner.gate.set()
    assert held.stub.Classify(classify(packet), timeout=60).predictions
    until(lambda: held.engine.load == (0, 0))
    assert held.engine.counts["cancelled"] == 3


def http2_frame(kind: int, flags: int, stream: int, payload: bytes, says: int | None = None) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1); `says` lies about its length."""
    length = len(payload) if says is None else says
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_a_connection_reset_in_the_middle_of_a_packet_harms_nobody(served, packet):
    """By hand, because a gRPC client never sends half a message: one whole frame, half of the next, then RST."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/thinwire.v1.InferenceService/ClassifyStream",
        ":authority": served.address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(  # HPACK literals without indexing
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    whole = pb.ClassifyStreamRequest(request=classify(packet)).SerializeToString()
    message = b"\0" + struct.pack(">I", len(whole)) + whole
    before = served.engine.counts["accepted"]
    host, _, port = served.address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b""))
        raw.sendall(http2_frame(1, 0x4, 1, block))
        raw.sendall(http2_frame(0, 0, 1, message) + http2_frame(0, 0, 1, message[: len(message) // 2], len(message)))
        until(lambda: served.engine.counts["accepted"] == before + 1)  # the whole frame was read and is answered
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
    assert served.stub.Classify(classify(packet), timeout=60).predictions
    until(lambda: served.engine.load == (0, 0))
    assert served.engine.counts["accepted"] == before + 2  # half a packet was never taken for one


# ---------------------------------------------------------------- stopping


def health_of(channel, service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status


def test_health_says_serving(served):
    for service in ("", "thinwire.v1.InferenceService"):
        assert health_of(served.channel, service) == health_pb2.HealthCheckResponse.SERVING


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_graceful_stop_loses_nothing_accepted(serve, packet, caplog):
    held = serve()
    calls = [held.hold(classify(packet))]
    calls += [held.stub.Classify.future(classify(packet), timeout=60) for _ in range(5)]
    requests = queue.SimpleQueue()
    stream = held.stub.ClassifyStream(iter(requests.get, None), timeout=60)
    for n in range(3):
        requests.put(pb.ClassifyStreamRequest(request=classify(packet, frame_id=n)))
    until(lambda: held.engine.load[0] == 9)
    watch = health_pb2_grpc.HealthStub(held.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    stopper = threading.Thread(target=held.close_server)
    stopper.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    until(lambda: not answers(held.address), what="nobody can connect any more")
    with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(held.address) as late:
        inference_pb2_grpc.InferenceServiceStub(late).Classify(classify(packet), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    held.runner.gate.set()
    assert all(call.result().predictions for call in calls)
    got = []
    with pytest.raises(grpc.RpcError) as caught:
        got.extend(answer.frame_id for answer in stream)
    requests.put(None)
    assert sorted(got) == [0, 1, 2]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    stopper.join(60)
    assert not stopper.is_alive()
    assert held.engine.counts["answered"] == held.engine.counts["accepted"] == 9
    gc.collect()
    assert not caplog.records  # asyncio logs tasks whose end nobody looked at
