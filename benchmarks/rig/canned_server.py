"""A server that answers without looking: for what is measured about the device and the line, not about answers.

python -m benchmarks.rig.canned_server PORT        prints "listening on 127.0.0.1:PORT" to stderr, answers until killed
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc


class LightService(inference_pb2_grpc.InferenceServiceServicer):
    """Checks each packet and says that it shows the first label. first_packet_at: monotonic seconds, None before."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles
        self.first_packet_at: float | None = None
        self.packets = 0

    def GetServerInfo(self, request, context):
        info = pb.GetServerInfoResponse(version="light", clip=pb.ClipInfo(name="none"))
        for bundle in self._bundles:
            info.bundles.add(name=bundle.name, model_id=bundle.model_id)
        return info

    def Classify(self, request, context):
        return self._answer(request, request.labels)

    def ClassifyStream(self, request_iterator, context):
        labels: Sequence[str] = ()
        for each in request_iterator:
            labels = each.request.labels or labels
            answer = self._answer(each.request, labels)
            yield pb.ClassifyStreamResponse(frame_id=each.request.frame_id, result=answer)

    def _answer(self, request: pb.ClassifyRequest, labels: Sequence[str]) -> pb.ClassifyResponse:
        if self.first_packet_at is None:
            self.first_packet_at = time.monotonic()
        self.packets += 1
        Packet.from_bytes(request.image.packet)
        reply = pb.ClassifyResponse(frame_id=request.frame_id)
        reply.predictions.add(label=labels[0], probability=1.0, similarity=1.0)
        return reply


@contextlib.contextmanager
def light_server(service: LightService, port: int = 0) -> Iterator[str]:
    """Serves on a loopback port: yields "127.0.0.1:PORT"."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait(5)


if __name__ == "__main__":
    with light_server(LightService([load_bundle(path) for path in shipped_bundles().values()]), int(sys.argv[1])) as at:
        print(f"listening on {at}", file=sys.stderr, flush=True)
        threading.Event().wait()
