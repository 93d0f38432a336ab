"""`thinwire-cloud` as a process: start line, ports, signals, exit codes, and what it refuses."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.errors import ClipMismatch
from cloud.networks.assemble import open_engine
from tests.cloud.served import classify
from tests.cloud.tiny_codec import write_tiny_codec
from thinwire.contract import SPOOL_KEY
from thinwire.errors import BundleError, UnknownBundle
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


def command(*args: str, cache: Path | None = None) -> dict:
    """Arguments for subprocess: the command line from a checkout, one torch thread."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if cache:
        env["THINWIRE_CACHE"] = str(cache)
    return {"args": [sys.executable, "-m", "cloud.cli", *args], "env": env, "cwd": ROOT, "text": True}


@pytest.fixture
def process(tiny_clip_dir, tiny_codec, tmp_path):
    """A server process on a free port, and its address."""
    args = ["serve", "--port", "0", "--clip", str(tiny_clip_dir), "--bundle", str(tiny_codec.path), "--threads", "1"]
    args += ["--device", "cpu", "--reflection"]
    running = subprocess.Popen(**command(*args, cache=tmp_path), stderr=subprocess.PIPE)
    lines = []
    for line in running.stderr:
        lines.append(line)
        if match := re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", line):
            break
    else:
        pytest.fail(f"the server did not start: {lines}")
    yield running, match[1], lines
    if running.poll() is None:
        running.kill()
    running.wait(60)
    running.stderr.close()


@pytest.mark.slow
def test_it_serves_says_what_and_where_and_stops_in_good_order(process, make_packet, tmp_path):
    running, address, lines = process
    assert "tiny-random-clip on cpu" in "".join(lines)
    assert "tiny-codec" in "".join(lines)
    request = pb.ClassifyRequest(image=pb.ImageInput(packet=make_packet()), labels=["cat", "dog"])
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request.frame_id = 7
        for _ in range(3):  # the same frame of the same spool: answered once, given again twice
            answer = stub.Classify(request, timeout=60, metadata=((SPOOL_KEY, "a" * 32),))
            assert len(answer.predictions) == 2
        assert list((tmp_path / "heads").glob("*.head"))
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    rest = running.stderr.read()
    assert "stopping" in rest
    assert ", 2 repeated" in rest
    assert rest.endswith("thinwire-cloud: stopped\n")


def next_line(running, holding):
    for line in running.stderr:
        if holding in line:
            return line
    pytest.fail(f"the server ended without {holding!r}")


@pytest.mark.slow
def test_sighup_reads_the_models_again_and_a_broken_one_changes_nothing(
    tiny_clip_dir, tiny_codec, make_packet, tmp_path
):
    codec = shutil.copytree(tiny_codec.path, tmp_path / "codec")
    args = ["serve", "--port", "0", "--clip", str(tiny_clip_dir), "--bundle", str(codec), "--threads", "1"]
    running = subprocess.Popen(**command(*args, cache=tmp_path), stderr=subprocess.PIPE)
    try:
        address = next_line(running, "listening on").split()[2]
        request = pb.ClassifyRequest(image=pb.ImageInput(packet=make_packet()), labels=["cat", "dog"])
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            before = stub.Classify(request, timeout=60).predictions
            running.send_signal(signal.SIGHUP)
            assert "tiny-codec" in next_line(running, "reloaded")
            decoder = codec / "decoder.safetensors"
            decoder.write_bytes(decoder.read_bytes()[:-1])
            running.send_signal(signal.SIGHUP)
            assert "decoder.safetensors" in next_line(running, "stay in use")
            assert stub.Classify(request, timeout=60).predictions == before
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait(60)
        running.stderr.close()


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way_and_exits_0(process, make_packet):
    """A request whose new label set keeps the text tower busy is accepted, then the signal comes."""
    running, address, _ = process
    labels = [f"label {n}" for n in range(600)]
    request = pb.ClassifyRequest(image=pb.ImageInput(packet=make_packet()), labels=labels, prompt_set="7")
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
        probe = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(probe).status == health_pb2.HealthCheckResponse.SERVING
        calls = [stub.Classify.future(request, timeout=60) for _ in range(4)]
        requests = queue.SimpleQueue()
        for each in (request, classify(b"no packet")):
            requests.put(pb.ClassifyStreamRequest(request=each))
        stream = stub.ClassifyStream(iter(requests.get, None), timeout=60)
        got = [next(stream)]  # of either frame: the first is accepted before the second is refused
        embed = pb.EmbedRequest(image=pb.ImageInput(packet=make_packet()))
        stub.Embed(embed, timeout=60)  # sent after the calls on the same connection: by now they are accepted
        running.send_signal(signal.SIGTERM)
        assert next(probe).status == health_pb2.HealthCheckResponse.NOT_SERVING
        probe.cancel()
        assert all(len(call.result().predictions) == 5 for call in calls)
        got.append(next(stream))
        assert sorted(len(each.result.predictions) for each in got) == [0, 5]
        requests.put(None)
        assert running.wait(60) == 0


@pytest.mark.slow
def test_a_taken_port_is_an_error_not_half_the_traffic(process, tiny_clip_dir, tiny_codec):
    _, address, _ = process
    port = address.rpartition(":")[2]
    args = ("serve", "--port", port, "--clip", str(tiny_clip_dir), "--bundle", str(tiny_codec.path))
    second = subprocess.run(**command(*args), capture_output=True, timeout=60)
    assert second.returncode == 1
    assert "is the port taken?" in second.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--clip", "/nowhere/clip"], "expected `clip-lite`"),
        (["--bundle", "nonesuch"], "nonesuch"),
    ],
)
def test_wrong_models_and_devices_exit_1_with_one_line(args, says, tiny_clip_dir, capsys):
    from cloud.cli import main

    full = ["serve", "--port", "0", *([] if "--clip" in args else ["--clip", str(tiny_clip_dir)]), *args]
    assert main(full) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_cuda_by_name_without_cuda_is_an_error(capsys, tiny_clip_dir):
    import torch

    from cloud.cli import main

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert main(["serve", "--device", "cuda", "--clip", str(tiny_clip_dir)]) == 1
    assert "sees no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["serve", "--port", "70000"], ["serve", "--device", "tpu"], ["serve", "--threads", "0"], [], ["fly"]]
)
def test_wrong_use_exits_2(args, capsys):
    from cloud.cli import main

    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2


def test_help_needs_no_torch():
    code = "import sys, cloud.cli as c\ntry: c.main(['serve', '--help'])\nfinally: assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "listening on" in run.stdout


def test_open_engine_answers_refuses_and_explains(tiny_clip_dir, tiny_codec, make_packet, tmp_path):
    vectors = write_tiny_codec(tmp_path / "vectors", seed=4, output="embedding", clip="ViT-B-32:openai")
    again = write_tiny_codec(tmp_path / tiny_codec.name)
    missing = write_tiny_codec(tmp_path / "missing", seed=5)
    missing.decoder_path.unlink()

    def open_with(*bundles):
        return open_engine(str(tiny_clip_dir), list(bundles), "cpu", 1, cache_dir=tmp_path / "heads")

    with open_with(tiny_codec.path) as engine:
        answer = engine.submit(packet=make_packet(), labels=("cat", "dog")).result(60)
        assert answer.bundle == tiny_codec.name
        assert {p.label for p in answer.predictions} == {"cat", "dog"}
    with pytest.raises(ClipMismatch, match="ViT-B-32:openai"):
        open_with(tiny_codec.path, vectors.path)
    with pytest.raises(BundleError, match="one model id"):
        open_with(tiny_codec.path, again.path)
    with pytest.raises(BundleError, match=r"decoder\.safetensors"):
        open_with(missing.path)
    with pytest.raises(UnknownBundle):
        open_with("nonesuch")


def test_a_shipped_bundle_for_another_clip_is_refused_packet_by_packet(
    tiny_clip_dir, tiny_codec, make_packet, tmp_path, monkeypatch
):
    vectors = write_tiny_codec(tmp_path / "vectors", seed=4, output="embedding", clip="ViT-B-32:openai")
    shipped = {"tiny-codec": tiny_codec.path, "vectors": vectors.path}
    monkeypatch.setattr("cloud.networks.parts.shipped_bundles", lambda: shipped)
    packet = Packet(vectors.model_id, (b"", b"")).to_bytes()
    with open_engine(str(tiny_clip_dir), None, "cpu", 1, cache_dir=tmp_path / "heads") as engine:
        with pytest.raises(ClipMismatch, match="ViT-B-32:openai"):
            engine.submit(packet=packet).result(60)
        assert engine.submit(packet=make_packet()).result(60)
