"""The engine under Ray Serve on a local 2-core Ray: the same answers and errors, and nothing lost when a replica dies.

Slow, and skipped where the extra `ray` is not installed (it is not in the lock): pip install 'thinwire[ray]'.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import grpc
import pytest

from benchmarks.system.ray_serve import kill_one_under_load, replica_actors
from tests.cloud.served import classify, refused
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'thinwire[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ingress(tiny_clip_dir, tiny_codec, tmp_path_factory):
    """ "HOST:PORT" of an application with two replicas."""
    from ray import serve

    from cloud.ray_app import APPLICATION, RaySettings, start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # the proxy's process imports the stubs
    cache = str(tmp_path_factory.mktemp("heads"))
    variables = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "THINWIRE_CACHE": cache}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=variables, log_to_driver=False)
    try:
        settings = RaySettings(
            (str(tiny_clip_dir),), (str(tiny_codec.path),), min_replicas=2, max_replicas=2, cpus=0.9, port=port
        )
        yield start(settings)
        serve.delete(APPLICATION)
    finally:
        serve.shutdown()
        ray.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def test_answers_and_errors_are_those_of_the_plain_server(ingress, serve, make_packet):
    plain = serve()
    with grpc.insecure_channel(ingress) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = classify(make_packet(3))
        ours, theirs = stub.Classify(request, timeout=60), plain.stub.Classify(request, timeout=60)
        assert [each.label for each in ours.predictions] == [each.label for each in theirs.predictions]
        for one, other in zip(ours.predictions, theirs.predictions, strict=True):
            assert one.similarity == pytest.approx(other.similarity, abs=1e-4)
        info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60)
        assert [each.name for each in info.bundles] == ["tiny-codec"]
        code, reason, _ = refused(lambda: stub.Classify(classify(b"TWxx not a packet"), timeout=60))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_PACKET")


def test_nothing_is_lost_when_a_replica_dies(ingress, make_packet):
    assert len(replica_actors()) == 2
    outcome = kill_one_under_load(ingress, classify(make_packet()), count=60, in_flight=3)
    assert outcome["killed"] == 1
    assert (outcome["answered"], outcome["lost"]) == (60, 0)
