"""What operators see: metrics, health, logs, traces; and that watching harms no answer."""

from __future__ import annotations

import io
import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud.engine.batching import BatchLimits
from cloud.engine.events import Observer
from cloud.engine.items import EngineLimits
from cloud.errors import BadConfiguration
from cloud.front.access import Security
from cloud.watch.live import LATEST, Live
from cloud.watch.logs import set_up_logs
from cloud.watch.metrics import JPEG_BITS_PER_PIXEL
from cloud.watch.options import WatchOptions, WebOptions
from tests.cloud.served import LABELS, classify, jpeg, refused
from tests.waiting import until
from thinwire.v1 import inference_pb2 as pb

WEB = WatchOptions(web=WebOptions())


def samples(served) -> dict[tuple, float]:
    """{(name, label value, ...): value} of a scrape."""
    status, body = served.get("/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def test_metrics_count_what_happened(serve, make_packet):
    served = serve(watch=WEB)
    packet = make_packet()
    for _ in range(3):
        served.stub.Classify(classify(packet), timeout=60)
    served.stub.Classify(classify(image_file=jpeg()), timeout=60)
    refused(lambda: served.stub.Classify(classify(b"TWxx not a packet"), timeout=60))
    refused(lambda: served.stub.Classify(classify(packet, labels=[]), timeout=60))
    found = samples(served)
    assert found["thinwire_requests_total", "image", "answered", ""] == 4
    assert found["thinwire_requests_total", "image", "failed", "BAD_PACKET"] == 1
    # By label order: code, method. Those without labels never reached the engine
    assert found["thinwire_rpcs_total", "OK", "InferenceService/Classify"] == 4
    assert found["thinwire_rpcs_total", "INVALID_ARGUMENT", "InferenceService/Classify"] == 2
    assert found[("thinwire_answer_seconds_count",)] == 4
    assert found["thinwire_stage_seconds_count", "queue"] == 4
    assert found["thinwire_stage_seconds_count", "clip"] == found[("thinwire_batch_size_count",)]
    assert found[("thinwire_batch_size_sum",)] == 4
    assert found["thinwire_input_bytes_total", "packet"] == 3 * len(packet)
    assert found["thinwire_input_bytes_total", "image_file"] == len(jpeg())
    saved = 3 * (96 * 96 * JPEG_BITS_PER_PIXEL / 8 - len(packet))
    assert found[("thinwire_saved_bytes_total",)] == pytest.approx(saved)
    assert found[("thinwire_queue_depth",)] == 0
    assert found[("process_resident_memory_bytes",)] > 1 << 20


def test_metrics_show_a_queue_and_refusals(serve, make_packet):
    served = serve(watch=WEB, limits=EngineLimits(queue_items=2, batch=BatchLimits(1)))
    request = classify(make_packet())
    held = [served.hold(request), served.stub.Classify.future(request, timeout=60)]
    until(lambda: served.engine.load[0] == 2)
    assert refused(lambda: served.stub.Classify(request, timeout=60))[1] == "QUEUE_FULL"
    found = samples(served)
    assert found[("thinwire_queue_depth",)] == 2
    assert found[("thinwire_queue_limit",)] == 2
    assert found["thinwire_requests_total", "", "rejected", "QUEUE_FULL"] == 1
    served.runner.gate.set()
    for call in held:
        call.result(60)


def test_calls_without_a_token_and_unknown_methods_are_counted(serve, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("0123456789abcdef\n")
    served = serve(watch=WEB, security=Security(token_file=tokens))
    refused(lambda: served.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60))
    for name in ("/made.up/One", "/made.up/Two"):
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            served.channel.unary_unary(name)(b"", timeout=60)
    found = samples(served)
    assert found["thinwire_rpcs_total", "UNAUTHENTICATED", "InferenceService/GetServerInfo"] == 1
    assert found["thinwire_rpcs_total", "UNIMPLEMENTED", "unknown"] == 2


def test_a_broken_observer_harms_nobody(serve, make_packet, caplog):
    class Broken(Observer):
        def settled(self, *_):
            raise RuntimeError("broken")

        answered = ran = settled

    served = serve(watch=WEB)
    served.engine.observers.add(Broken())
    for _ in range(3):
        assert served.stub.Classify(classify(make_packet()), timeout=60).predictions
    assert sum("Broken" in record.message for record in caplog.records) == 3  # once for each moment
    assert samples(served)["thinwire_requests_total", "image", "answered", ""] == 3


def test_frames_of_streams_are_seen_with_the_device_that_sent_them(serve, make_packet):
    served = serve(watch=WEB)
    frames = [pb.ClassifyStreamRequest(request=classify(make_packet(n), frame_id=n)) for n in range(3)]
    assert len(list(served.stub.ClassifyStream(iter(frames), timeout=60, metadata=[("thinwire-device", "cam-3")]))) == 3
    served.stub.Classify(classify(image_file=jpeg()), timeout=60, metadata=[("thinwire-device", "<b>no name</b>")])
    status, live = served.get("/api/live")
    assert status == 200
    assert [row["device"] for row in live["latest"]] == ["ipv4:127.0.0.1", "cam-3", "cam-3", "cam-3"]
    assert live["totals"]["answered"] == 4
    assert sum(int(size) * count for size, count in live["batches"].items()) == 4
    assert live["latency_ms"]["p50"] > 0
    assert {row["bytes"] for row in live["latest"]} == {len(jpeg()), *(len(make_packet(n)) for n in range(3))}
    kinds = {served.get(f"/api/latest/{row['number']}")[1][:4] for row in live["latest"]}
    assert kinds == {b"\x89PNG", b"\xff\xd8\xff\xe0"}
    assert served.get("/api/latest/999")[0] == 404


def test_only_the_latest_are_kept_and_large_files_without_their_bytes():
    from types import SimpleNamespace

    live = Live(clock=lambda: 1000.0)
    timing = SimpleNamespace(total_ms=5.0)
    answer = SimpleNamespace(bundle=None, layers=0, timing=timing, predictions=(), opinions=())
    for size in [3_000_000, *[10] * LATEST]:
        source = {"packet": None, "image_file": b"x" * size, "input_bytes": size}
        live.answered(SimpleNamespace(at=1000.0, device_id="cam", answer=answer, went="", **source))
        if size > 10:
            assert live.source(1) == (None, None)
            assert live.snapshot()["latest"][0]["picture"] is False
    assert len(live.snapshot()["latest"]) == LATEST
    assert live.source(2) == (None, b"x" * 10)


def test_health_and_strangers(serve):
    served = serve(watch=WEB)
    assert served.get("/healthz") == (200, b"ok\n")
    assert served.get("/api/live", Host="rebound.example")[0] == 421
    assert served.get("/api/live", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert served.get("/api/search?text=cat")[0] == 404  # nothing is kept
    assert served.get("/../cli.py")[0] == 404
    served.watch.stopping()
    assert served.get("/healthz")[0] == 503


def test_without_the_page_there_are_no_pictures(serve):
    served = serve(watch=WatchOptions(web=WebOptions(page=False)))
    assert served.get("/metrics")[0] == served.get("/healthz")[0] == 200
    for path in ("/", "/api/live", "/api/latest/1", "/api/search?text=cat"):
        assert served.get(path)[0] == 404


def test_the_page_is_not_shown_beyond_this_machine_by_accident():
    with pytest.raises(BadConfiguration, match="--no-page"):
        WebOptions(host="0.0.0.0").check()
    WebOptions(host="0.0.0.0", page=False).check()
    WebOptions(host="0.0.0.0", allow_plaintext=True).check()


@pytest.fixture
def restore_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("cloud.requests").setLevel(logging.NOTSET)


def test_logs_for_machines(serve, make_packet, restore_logging):
    out = io.StringIO()
    assert set_up_logs("json", out) == "json"
    logging.getLogger("cloud.requests").setLevel(logging.INFO)
    served = serve(watch=WatchOptions(request_log=True))
    served.stub.Classify(classify(make_packet()), timeout=60)
    refused(lambda: served.stub.Classify(classify(b"TWxx not a packet"), timeout=60))
    until(lambda: out.getvalue().count("\n") >= 2)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    answered, failed = (row for row in rows if row["logger"] == "cloud.requests")
    assert (answered["outcome"], answered["bundle"], answered["batch_size"]) == ("answered", "tiny-codec", 1)
    assert answered["total_ms"] >= answered["clip_ms"] > 0
    assert (failed["outcome"], failed["reason"], failed["level"]) == ("failed", "BAD_PACKET", "INFO")
    assert not any(label.strip() and label.strip() in out.getvalue() for label in LABELS)


@pytest.mark.parametrize(("form", "shown"), [("plain", "thinwire-cloud: WARNING: a %s b"), ("rich", "WARNING")])
def test_logs_for_people(form, shown, restore_logging):
    out = io.StringIO()
    set_up_logs(form, out)
    logging.getLogger("cloud").warning("a %%s b %s", "[bold]")
    assert shown in out.getvalue()
    assert "[bold]" in out.getvalue()
    assert set_up_logs("auto", io.StringIO()) == "plain"  # no terminal


def test_traces_continue_the_callers_and_show_stages(serve, make_packet):
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from cloud.watch import traces

    spans = InMemorySpanExporter()
    made = []

    def traced(endpoint):
        made.append(real(endpoint, spans))
        return made[-1]

    real, traces.Traces = traces.Traces, traced
    try:
        served = serve(watch=WatchOptions(traces="http://127.0.0.1:4317"))
    finally:
        traces.Traces = real
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    metadata = [("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"), ("thinwire-device", "cam-1")]
    served.stub.Classify(classify(make_packet()), timeout=60, metadata=metadata)
    refused(lambda: served.stub.Classify(classify(b"TWxx"), timeout=60))
    frames = [pb.ClassifyStreamRequest(request=classify(make_packet()))]
    assert len(list(served.stub.ClassifyStream(iter(frames), timeout=60))) == 1
    made[0]._provider.force_flush()
    found = spans.get_finished_spans()
    ours = [span for span in found if f"{span.context.trace_id:032x}" == trace_id]
    assert {span.name for span in ours} >= {"answer", "queue", "decode", "synthesis", "clip", "head"}
    answer = next(span for span in ours if span.name == "answer")
    call = next(span for span in ours if span.context.span_id == answer.parent.span_id)
    assert call.name.endswith("Classify")
    assert f"{call.parent.span_id:016x}" == "b7ad6b7169203331"
    assert answer.attributes["thinwire.device_id"] == "cam-1"
    stages = [span for span in ours if span.parent.span_id == answer.context.span_id]
    assert len(stages) == 5
    assert all(answer.start_time <= span.start_time <= span.end_time <= answer.end_time for span in stages)
    codes = [span.attributes["rpc.grpc.status_code"] for span in found if span.name.endswith("Classify")]
    assert sorted(codes) == [0, 3]  # OK, INVALID_ARGUMENT
    assert sum(span.name == "answer" for span in found) == 2  # the stream's frame too


def test_a_wrong_collector_is_told_before_the_start():
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
    from cloud.watch.traces import Traces

    with pytest.raises(BadConfiguration, match="http://HOST:4317"):
        Traces("collector:4317")
