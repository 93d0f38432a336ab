"""Packed stills at a real server: answered like frames that were sent as they are, or refused with the fix."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from tests.cloud.served import LABELS, classify
from tests.tiny_bundle import make_tiny_still, synthetic_views
from thinwire import frame_packing
from thinwire.entropy import compiled_module
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2_grpc

if not hasattr(compiled_module(), "StillPacker"):
    pytest.skip("no compiled coder, and nothing else packs", allow_module_level=True)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    return make_tiny_still(tmp_path_factory.mktemp("still") / "packed", packed=True)


@pytest.fixture(scope="module")
def packets(still) -> tuple[bytes, bytes]:
    """One view, packed and as the frame that it is."""
    planes = np.ascontiguousarray(synthetic_views(1, 64)[0].transpose(2, 0, 1))
    packed = still.encode(planes, "high")
    level, frame = still.coder.frame(packed.layers)
    plain = Packet(still.model_id, (still.coder.payload(frame, level, packed=False),))
    return packed.to_bytes(), plain.to_bytes()


def answers(address: str, packet: bytes) -> list[tuple[str, float]]:
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = stub.Classify(classify(packet, top_k=len(LABELS)), timeout=60)
    return [(each.label, pytest.approx(each.similarity, abs=1e-5)) for each in reply.predictions]


def test_packed_and_plain_frames_are_answered_alike(tiny_clip_dir, still, packets, tmp_path):
    packed, plain = packets
    assert len(packed) < len(plain)
    engine = open_engine(str(tiny_clip_dir), [still.path], "cpu", 1, cache_dir=tmp_path)
    with background_server(engine) as address:
        assert answers(address, packed) == answers(address, plain)


def test_a_server_without_the_compiled_coder_reads_plain_frames_alone(
    tiny_clip_dir, still, packets, tmp_path, monkeypatch
):
    monkeypatch.setattr(frame_packing, "compiled_module", lambda: None)
    engine = open_engine(str(tiny_clip_dir), [still.path], "cpu", 1, cache_dir=tmp_path)
    with background_server(engine) as address:
        with pytest.raises(grpc.RpcError, match="install thinwire's wheel") as refused:
            answers(address, packets[0])
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert answers(address, packets[1])
