"""A link that breaks at chosen moments: a gRPC relay in front of a real server, which passes one frame of each stream
on and then cuts the stream, before or after the answer went back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from cloud.front.server import background_server
from edge.line.uplink import Line, Uplink
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc


class Relay(inference_pb2_grpc.InferenceServiceServicer):
    """requests: the first of each stream, as they came. swallows(number): whether the number-th answer (from 0) gets
    lost on the way back. before(number): called before the number-th stream's frame is passed on."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self._server = contextlib.ExitStack()
        self.requests: list[pb.ClassifyRequest] = []
        self.swallows: Callable[[int], bool] = lambda number: False
        self.before: Callable[[int], None] = lambda number: None

    def restart(self) -> None:
        """Another server process, as far as clients can tell: the same models and address, and no memory."""
        self._server.close()
        self._server.enter_context(background_server(self._engine, self._upstream))

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Yields "127.0.0.1:PORT"."""
        self._engine.close = lambda *_: True  # the engine outlives its servers
        front = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, front)
        port = front.add_insecure_port("127.0.0.1:0")
        try:
            self._upstream = self._server.enter_context(background_server(self._engine))
            with Uplink(Line(self._upstream)) as self._uplink:
                front.start()
                yield f"127.0.0.1:{port}"
                front.stop(0).wait(5)
        finally:
            self._server.close()
            self._engine.__dict__.pop("close", None)

    def GetServerInfo(self, request, context):
        return self._uplink.info()

    def RegisterLabels(self, request, context):
        return self._uplink.register(request)

    def ClassifyStream(self, request_iterator, context):
        message = next(request_iterator)
        number = len(self.requests)
        self.requests.append(message.request)
        self.before(number)
        device = [pair for pair in context.invocation_metadata() if pair[0] == "thinwire-spool"]
        answer = next(iter(self._uplink.stream(iter([message]), tuple(map(tuple, device)))))
        if not self.swallows(number):
            yield answer
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
