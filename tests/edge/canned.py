"""A real gRPC server whose answers a test decides: the servicer of inference.proto without any model behind it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.rpc import error_details_pb2, status_pb2

from thinwire.bundle import Bundle
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

Behaviour = Callable[[pb.ClassifyRequest, grpc.ServicerContext], pb.ClassifyResponse]


def answer(request: pb.ClassifyRequest, context: grpc.ServicerContext | None = None) -> pb.ClassifyResponse:
    """Ranks the labels in the order given."""
    reply = pb.ClassifyResponse(frame_id=request.frame_id)
    reply.timing.total_ms, reply.timing.batch_size = 1.5, 1
    reply.model.clip, reply.model.bundle = "canned", "tiny"
    for index, label in enumerate(request.labels[: request.top_k or 5]):
        reply.predictions.add(label=label, index=index, probability=0.5 ** (index + 1), similarity=0.3 - 0.1 * index)
    return reply


def refuse(code: grpc.StatusCode, message: str, reason: str = "", pushback_ms: int | None = None) -> Behaviour:
    """Aborts with a status, ErrorInfo and pushback, as the cloud does."""

    def behave(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        trailers = [] if pushback_ms is None else [("grpc-retry-pushback-ms", str(pushback_ms))]
        if reason:
            status = status_pb2.Status(code=code.value[0], message=message)
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="thinwire"))
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        context.set_trailing_metadata(tuple(trailers))
        context.abort(code, message)

    return behave


def after(seconds: float) -> Behaviour:
    """Answers late, or not at all once nobody waits."""

    def behave(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        end = time.monotonic() + seconds
        while time.monotonic() < end and context.is_active():
            time.sleep(0.01)
        return answer(request)

    return behave


FrameBehaviour = Callable[[pb.ClassifyRequest, grpc.ServicerContext], Iterator[pb.ClassifyStreamResponse]]


def answer_frame(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> Iterator[pb.ClassifyStreamResponse]:
    yield pb.ClassifyStreamResponse(frame_id=request.frame_id, result=answer(request))


def fail_frame(code: grpc.StatusCode, reason: str, retry_after_ms: int = 0) -> FrameBehaviour:
    def behave(request, context):
        error = pb.FrameError(code=code.value[0], reason=reason, message="says why", retry_after_ms=retry_after_ms)
        yield pb.ClassifyStreamResponse(frame_id=request.frame_id, error=error)

    return behave


def need_more(layer: int) -> FrameBehaviour:
    """Asks for a layer; the answer so far prefers the last label."""

    def behave(request, context):
        so_far = answer(pb.ClassifyRequest(labels=[request.labels[-1]], frame_id=request.frame_id))
        yield pb.ClassifyStreamResponse(
            frame_id=request.frame_id, need_more=pb.NeedMore(layer=layer, so_far=so_far, confidence=0.5)
        )

    return behave


def answer_more(more: pb.MoreLayers) -> Iterator[pb.ClassifyStreamResponse]:
    result = answer(pb.ClassifyRequest(labels=["more"], frame_id=more.frame_id))
    yield pb.ClassifyStreamResponse(frame_id=more.frame_id, result=result)


def keep_silent(request, context):
    """The frame is never answered."""
    yield from ()


def cut(request, context):
    """The stream ends as when a server goes away."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    yield


class Canned(inference_pb2_grpc.InferenceServiceServicer):
    """Behaves as `script` says, call by call, then as `usual`; remembers what it was sent."""

    def __init__(self, bundles: list[Bundle]) -> None:
        self.bundles = bundles
        self.script: deque[Behaviour] = deque()
        self.usual: Behaviour = answer
        self.requests: list[pb.ClassifyRequest] = []
        self.times: list[float] = []
        self.peers: set[str] = set()
        self.metadata: list[dict[str, str]] = []
        self.frames: list[pb.ClassifyRequest] = []  # as they came over streams
        self.frame_times: list[float] = []
        self.frame_script: deque[FrameBehaviour] = deque()
        self.frame_usual: FrameBehaviour = answer_frame
        self.more: list[pb.MoreLayers] = []
        self.offers: list[pb.Progressive | None] = []
        self.answer_more: Callable[[pb.MoreLayers], Iterator[pb.ClassifyStreamResponse]] = answer_more
        self.progressive = False  # what it says of its bundles
        self.streams = 0
        self.version = "0"
        self.time: float | None = None  # what it says the time is
        self.vectors: dict[str, list[float]] = {}
        self.labels: dict[str, list[str]] | None = None  # by handle; None: a server that knows no handles
        self.parts = None  # a `cloud.front.label_parts.LabelParts`; None: a server that takes no pieces
        self.registered: list[int] = []
        self.part_bytes = 0
        self.now = self.most = 0
        self._lock = threading.Lock()

    def GetServerInfo(self, request, context):
        self.peers.add(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))
        if self.time is not None:
            context.send_initial_metadata((("thinwire-time", str(self.time)),))
        info = pb.GetServerInfoResponse(
            version=self.version, clip=pb.ClipInfo(name="canned", embed_dim=4), device="none"
        )
        for bundle in self.bundles:
            info.bundles.add(name=bundle.name, model_id=bundle.model_id, progressive=self.progressive)
        return info

    def ClassifyStream(self, request_iterator, context):
        self.streams += 1
        self.metadata.append(dict(context.invocation_metadata()))
        asked = pb.ClassifyRequest()
        for each in request_iterator:
            if each.HasField("more"):
                self.more.append(each.more)
                yield from self.answer_more(each.more)
                continue
            self.offers.append(each.progressive if each.HasField("progressive") else None)
            self.frames.append(pb.ClassifyRequest.FromString(each.request.SerializeToString()))
            self.frame_times.append(time.monotonic())
            if each.request.label_set and each.request.label_set not in (self.labels or {}):
                yield from fail_frame(grpc.StatusCode.NOT_FOUND, "UNKNOWN_LABEL_SET")(each.request, context)
                continue
            if each.request.labels or each.request.label_set:
                labels = each.request.labels or self.labels[each.request.label_set]
                asked = pb.ClassifyRequest(labels=labels, top_k=each.request.top_k)
            if not each.request.labels:
                each.request.MergeFrom(asked)
            with self._lock:
                behave = self.frame_script.popleft() if self.frame_script else self.frame_usual
            yield from behave(each.request, context)

    def RegisterLabels(self, request, context):
        if self.labels is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        self.registered.append(request.ByteSize())
        handle = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:32]
        self.labels[handle] = list(request.labels)
        return pb.RegisterLabelsResponse(label_set=handle, labels=len(request.labels))

    def RegisterLabelsPart(self, request, context):
        if self.parts is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        self.part_bytes += len(request.data)
        held, whole = self.parts.take(request)
        response = pb.RegisterLabelsPartResponse(held_bytes=held)
        if whole is not None:
            response.registered.CopyFrom(self.RegisterLabels(whole, context))
        return response

    def EncodeText(self, request, context):
        vectors = [pb.Embedding(values=self.vectors[text]) for text in request.texts]
        return pb.EncodeTextResponse(embeddings=vectors)

    def Classify(self, request, context):
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.peers.add(context.peer())
            self.metadata.append(dict(context.invocation_metadata()))
            self.now += 1
            self.most = max(self.most, self.now)
            behave = self.script.popleft() if self.script else self.usual
        try:
            return behave(request, context)
        finally:
            with self._lock:
                self.now -= 1


@contextlib.contextmanager
def serve(
    servicer: inference_pb2_grpc.InferenceServiceServicer | None,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """A server on a free loopback port: yields "127.0.0.1:PORT". None serves nothing at all, but listens."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(5)
