"""The commands of docs/operations.md's runbook, one block after the other, against a real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from tests.waiting import until
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
RUNBOOK = PAGE[PAGE.index("\n## Runbook\n") : PAGE.index("\n## Upgrade and rollback")]
SECTIONS = re.split(r"^### ", RUNBOOK, flags=re.M)[1:]
BLOCK = re.compile(r"^```sh runbook\n(.*?)^```$", re.M | re.S)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="needs bash, curl and openssl"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(process, gRPC address, HTTP address, environment and folder for commands) of a service with a kept frame."""
    folder = tmp_path_factory.mktemp("runbook")
    codec = write_tiny_codec(folder / "tiny-codec")
    clip = write_tiny_clip(folder / "tiny-random-clip")
    scripts = folder / "bin"
    scripts.mkdir()
    for name, module in (("thinwire-cloud", "cloud.cli"), ("thinwire-edge", "edge.cli")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (scripts / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "THINWIRE_CACHE": str(folder / "cache"),
        "THINWIRE_CLIP": str(clip),
        "THINWIRE_BUNDLE": str(codec.path),
        "no_proxy": "*",
    }
    command = [scripts / "thinwire-cloud", "serve", "--port", "0", "--http-port", "0", "--threads", "1"]
    command += ["--device", "cpu", "--store", folder / "frames.db"]
    log = folder / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(list(map(str, command)), stderr=stderr, env=environment, cwd=folder)
    try:
        until(lambda: "listening on" in log.read_text() or process.poll() is not None, 200, "the service listens")
        told = log.read_text()
        assert process.poll() is None, told
        address = re.search(r"^listening on (\S+)$", told, re.M)[1]
        http = re.search(r"on http://(\S+)", told)[1]
        packet = Packet(codec.model_id, tuple(codec.coder.encode(np.zeros(codec.latent_shape, np.int32))))
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = pb.ClassifyRequest(image=pb.ImageInput(packet=packet.to_bytes()), labels=["cat", "dog"])
            assert stub.Classify(request, timeout=60).predictions
        yield process, address, http, environment, folder, log
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_there_are_ten_sections_and_each_has_a_command():
    assert [int(section.partition(".")[0]) for section in SECTIONS] == list(range(1, 11))
    for section in SECTIONS:
        assert BLOCK.search(section), section.splitlines()[0]


SHOWN = {  # what an operator must find in a section's output
    1: ["# in order", "ok"],
    2: ["thinwire_queue_depth 0.0", 'outcome="answered"', '"limit": 256'],
    3: ['stage="clip"'],
    4: ["# bundle tiny-codec ("],
    5: ["thinwire_requests_total{"],
    6: ["notAfter=", "# in order"],
    8: ["process_resident_memory_bytes", "thinwire_store_frames 1.0", '"frames": 1'],
    9: ['"dropped": 0', "cat", "0 frames deleted"],
}


@pytest.mark.parametrize("number", range(1, 11))
def test_a_section_s_commands_run(service, number):
    process, address, http, environment, folder, log = service
    shown = ""
    for block in BLOCK.findall(SECTIONS[number - 1]):
        script = block.replace("127.0.0.1:50051", address).replace("127.0.0.1:9464", http)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=environment | {"PID": str(process.pid)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        shown += done.stdout
    for words in SHOWN.get(number, []):
        assert words in shown or (words == "cat" and "dog" in shown), f"{words!r} is not in:\n{shown}"
    if number == 10:
        until(lambda: "reloaded: tiny-codec" in log.read_text(), 120)
