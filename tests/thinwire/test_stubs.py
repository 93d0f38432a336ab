from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


def test_committed_stubs_are_what_the_proto_files_generate():
    pytest.importorskip("grpc_tools")
    done = subprocess.run(
        [sys.executable, "scripts/generate_stubs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_proto_files_pass_buf_lint():
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed (pip install buf-bin)")
    done = subprocess.run([buf, "lint"], cwd=ROOT / "proto", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_service_has_the_agreed_methods():
    service = pb.DESCRIPTOR.services_by_name["InferenceService"]
    kinds = {method.name: (method.client_streaming, method.server_streaming) for method in service.methods}
    assert service.full_name == "thinwire.v1.InferenceService"
    assert kinds == {
        "GetServerInfo": (False, False),
        "Classify": (False, False),
        "ClassifyStream": (True, True),
        "Embed": (False, False),
        "EncodeText": (False, False),
        "Rank": (False, False),
        "Decode": (False, False),
        "RegisterLabels": (False, False),
        "RegisterLabelsPart": (False, False),
    }
    assert inference_pb2_grpc.InferenceServiceStub


def test_an_image_comes_in_one_form():
    image = pb.ImageInput(packet=b"TW")
    image.image_file = b"\xff\xd8"
    assert image.WhichOneof("source") == "image_file"
    assert image.packet == b""
    assert pb.ImageInput().WhichOneof("source") is None


def test_a_streamed_frame_has_a_result_or_an_error():
    error = pb.FrameError(code=3, reason="BAD_PACKET", message="damaged")
    answer = pb.ClassifyStreamResponse.FromString(
        pb.ClassifyStreamResponse(frame_id=7, error=error).SerializeToString()
    )
    assert answer.frame_id == 7
    assert answer.WhichOneof("outcome") == "error"


def test_golden_request_bytes():
    request = pb.ClassifyRequest(
        image=pb.ImageInput(packet=b"TW"), labels=["cat", "dog"], prompt_set="7", top_k=3, frame_id=300
    )
    expected = "0a04 0a02 5457  1203 636174 1203 646f67  1a01 37  2803  30ac02"
    assert request.SerializeToString(deterministic=True) == bytes.fromhex(expected)
    assert pb.ClassifyRequest.FromString(bytes.fromhex(expected)) == request


def test_framing_of_a_streamed_packet_costs_few_bytes():
    packet = bytes(600)
    request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(image=pb.ImageInput(packet=packet), frame_id=1))
    assert request.ByteSize() - len(packet) <= 12
