"""How many bytes a request puts on the wire, by counting them: a relay between a real gRPC client and a real server.

The server answers at once and computes nothing, because the bytes that a client sends do not depend on what becomes of
them. Counted are the bytes that the client writes into its TCP connection (HTTP/2 frames with headers, gRPC's prefix,
the protobuf message); TCP and IP add 40 bytes or more a segment, which depends on the link.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from edge.line.client import Question
from edge.line.uplink import Line, Uplink
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

CHUNK_BYTES = 1 << 16


class _AtOnce(inference_pb2_grpc.InferenceServiceServicer):
    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        return pb.ClassifyResponse()


class WireMeter:
    """Counts the bytes of requests on one warm connection. Not for use by several threads; see `wire_meter`."""

    def __init__(self, uplink: Uplink, relay: _Relay) -> None:
        self._uplink, self._relay = uplink, relay

    def measure(self, question: Question, **source: bytes) -> tuple[int, int]:
        """A request for one image (`packet=` or `image_file=`) → (bytes of its protobuf message, bytes on the wire)."""
        request = question.request(**source)
        before = self._relay.sent
        self._uplink.classify(request)
        return request.ByteSize(), self._relay.sent - before


@contextlib.contextmanager
def wire_meter(labels: Sequence[str]) -> Iterator[WireMeter]:
    """A meter with a connection on which two requests went already, so that headers are indexed as in a long run."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(_AtOnce(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with _relay_to(port) as relay, Uplink(Line(f"127.0.0.1:{relay.port}")) as uplink:
            meter = WireMeter(uplink, relay)
            question = Question.check(labels, 1, "7")
            for _ in range(2):
                meter.measure(question, packet=b"warm-up")
            yield meter
    finally:
        server.stop(None).wait()


class _Relay:
    """Passes one connection on and counts what the client sends."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.sent = 0
        self._target = port
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="wire-relay", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            back = threading.Thread(target=self._pump, args=(server, client, False), name="wire-back", daemon=True)
            self._threads.append(back)
            back.start()
            self._pump(client, server, True)

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):  # one end has gone
            while data := source.recv(CHUNK_BYTES):
                if counted:
                    self.sent += len(data)  # before it is passed on, so that a reply finds its request counted
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)


@contextlib.contextmanager
def _relay_to(port: int) -> Iterator[_Relay]:
    relay = _Relay(port)
    try:
        yield relay
    finally:
        relay.close()
