"""The grpc.aio front: checks requests, hands them to the engine, maps errors to statuses. Knows no tensors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud.engine import Engine
from cloud.errors import InferenceFailed, InvalidRequest, ShuttingDown
from cloud.info import server_info
from cloud.requests import Answer
from cloud.status import code_of, message_of, retry_after_ms, trailers_of
from thinwire import labels as label_rules
from thinwire.errors import PacketTooLarge, ThinwireError
from thinwire.packet import MAX_PACKET_BYTES
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = "thinwire.v1.InferenceService"
T = TypeVar("T")


@dataclass(frozen=True)
class ServerOptions:
    """What the front accepts; `GetServerInfo` tells clients."""

    max_image_file_bytes: int = 16 << 20
    stream_window: int = 32  # frames of one stream that may be unanswered at a time
    max_texts: int = 1024
    grace_s: float = 20.0  # how long a stopping server waits for what it accepted
    reflection: bool = False

    @property
    def max_message_bytes(self) -> int:
        """The largest image file with the longest label list beside it. gRPC refuses more before it is read."""
        return self.max_image_file_bytes + (4 << 20)


@lru_cache(maxsize=8)
def _checked_labels(labels: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Labels as `thinwire.labels` cleans them, with the place of each in the request (cleaning drops repeats)."""
    clean = label_rules.validate_labels(labels)
    places: dict[str, int] = {}
    for place, label in enumerate(labels):
        places.setdefault(label.strip(), place)
    return clean, tuple(places[label] for label in clean)


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """The RPCs of proto/thinwire/v1/inference.proto over an `Engine`."""

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self._engine = engine
        self._options = options
        self._stopping = asyncio.Event()
        self._info = server_info(engine, options)

    def stop_streams(self) -> None:
        """Streams answer the frames they have read, then end."""
        self._stopping.set()

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext):
        return self._info

    async def Classify(self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext):
        return await _or_abort(context, self._classify(request, _deadline(context)))

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext):
        return await _or_abort(context, self._embed(request, _deadline(context)))

    async def EncodeText(self, request: pb.EncodeTextRequest, context: grpc.aio.ServicerContext):
        return await _or_abort(context, self._encode_text(request, _deadline(context)))

    async def ClassifyStream(self, request_iterator, context: grpc.aio.ServicerContext) -> None:
        deadline = _deadline(context)
        window = asyncio.Semaphore(self._options.stream_window)
        writing = asyncio.Lock()
        frames: set[asyncio.Task] = set()
        stopping = asyncio.ensure_future(self._stopping.wait())
        defaults = pb.ClassifyRequest()

        async def answer(request: pb.ClassifyRequest) -> None:
            try:
                response = await self._frame(request, deadline)
                async with writing:
                    await context.write(response)
            finally:
                window.release()

        try:
            while True:
                await window.acquire()
                # Never a timeout around a read: cancelling one cancels the whole call. A stop leaves it pending.
                read = asyncio.ensure_future(context.read())
                read.add_done_callback(_seen)
                await asyncio.wait({read, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done() or read.result() is grpc.aio.EOF:
                    break
                request = read.result().request
                if request.labels:
                    defaults = pb.ClassifyRequest(
                        labels=request.labels,
                        prompt_set=request.prompt_set,
                        templates=request.templates,
                        top_k=request.top_k,
                    )
                else:
                    request.MergeFrom(defaults)
                frame = asyncio.ensure_future(answer(request))
                frames.add(frame)
                frame.add_done_callback(frames.discard)
                frame.add_done_callback(_seen)
            if frames:
                await asyncio.gather(*frames)
            if not read.done():
                await _abort(context, ShuttingDown("the server is stopping; every frame it had read is answered"))
        finally:
            stopping.cancel()
            for frame in frames:
                frame.cancel()

    # ---------------------------------------------------------------- one request

    async def _frame(self, request: pb.ClassifyRequest, deadline: float | None) -> pb.ClassifyStreamResponse:
        """One frame's answer or error: nothing that a frame holds ends its stream."""
        try:
            result = await self._classify(request, deadline)
        except Exception as caught:
            error = _typed(caught)
            return pb.ClassifyStreamResponse(
                frame_id=request.frame_id,
                error=pb.FrameError(
                    code=code_of(error).value[0],
                    reason=error.reason,
                    message=message_of(error),
                    retry_after_ms=retry_after_ms(error),
                ),
            )
        return pb.ClassifyStreamResponse(frame_id=request.frame_id, result=result)

    async def _classify(self, request: pb.ClassifyRequest, deadline: float | None) -> pb.ClassifyResponse:
        labels, places = _checked_labels(tuple(request.labels))
        templates = label_rules.resolve_templates(request.prompt_set, request.templates)
        future = self._engine.submit(
            **self._source(request.image),
            labels=labels,
            templates=templates,
            top_k=request.top_k or 5,
            deadline=deadline,
        )
        answer = await asyncio.wrap_future(future)
        response = pb.ClassifyResponse(
            timing=_timing(answer), model=self._model(answer.bundle, answer.layers), frame_id=request.frame_id
        )
        for got in answer.predictions:
            response.predictions.add(
                label=got.label, index=places[got.index], probability=got.probability, similarity=got.similarity
            )
        return response

    async def _embed(self, request: pb.EmbedRequest, deadline: float | None) -> pb.EmbedResponse:
        answer = await asyncio.wrap_future(self._engine.submit(**self._source(request.image), deadline=deadline))
        return pb.EmbedResponse(
            embedding=pb.Embedding(values=answer.embedding.tolist()),
            timing=_timing(answer),
            model=self._model(answer.bundle, answer.layers),
            frame_id=request.frame_id,
        )

    async def _encode_text(self, request: pb.EncodeTextRequest, deadline: float | None) -> pb.EncodeTextResponse:
        texts = _checked_texts(request.texts, self._options.max_texts)
        templates: Sequence[str] = ()
        if request.prompt_set or request.templates:
            templates = label_rules.resolve_templates(request.prompt_set, request.templates)
        vectors = await asyncio.wrap_future(self._engine.submit_texts(texts, templates=templates, deadline=deadline))
        return pb.EncodeTextResponse(
            embeddings=[pb.Embedding(values=vector.tolist()) for vector in vectors], model=self._model(None, 0)
        )

    def _source(self, image: pb.ImageInput) -> dict[str, bytes]:
        kind = image.WhichOneof("source")
        if kind is None:
            raise InvalidRequest("the request holds no image: set image.packet or image.image_file")
        data = getattr(image, kind)
        limit = MAX_PACKET_BYTES if kind == "packet" else self._options.max_image_file_bytes
        if len(data) > limit:
            raise PacketTooLarge(f"{kind} has {len(data)} bytes, this server takes at most {limit}")
        return {kind: data}

    def _model(self, bundle: str | None, layers: int) -> pb.ModelInfo:
        return pb.ModelInfo(clip=self._info.clip.name, bundle=bundle or "", layers=layers)


def _checked_texts(texts: Sequence[str], limit: int) -> list[str]:
    if not texts:
        raise InvalidRequest("the request holds no texts")
    if len(texts) > limit:
        raise InvalidRequest(f"{len(texts)} texts in one request, this server takes at most {limit}: split them")
    for place, text in enumerate(texts):
        if not text.strip():
            raise InvalidRequest(f"text {place} is empty")
        if len(text) > label_rules.MAX_LABEL_CHARS:
            raise InvalidRequest(f"text {place} has {len(text)} characters, the limit is {label_rules.MAX_LABEL_CHARS}")
    return list(texts)


def _timing(answer: Answer) -> pb.Timing:
    timing = answer.timing
    return pb.Timing(
        queue_ms=timing.queue_ms,
        decode_ms=timing.decode_ms,
        synthesis_ms=timing.synthesis_ms,
        clip_ms=timing.clip_ms,
        head_ms=timing.head_ms,
        total_ms=timing.total_ms,
        batch_size=timing.batch_size,
    )


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    """The caller's deadline on this machine's monotonic clock; None where it set none."""
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic() + left_s


def _typed(error: Exception) -> ThinwireError:
    if isinstance(error, ThinwireError):
        return error
    log.error("a request failed unexpectedly", exc_info=error)
    return InferenceFailed("an internal error; the server's log has more")


def _seen(task: asyncio.Task) -> None:
    """Reads and writes of a call that ended fail; nobody waits for them, and asyncio would log that."""
    if not task.cancelled():
        task.exception()


async def _or_abort(context: grpc.aio.ServicerContext, answer: Awaitable[T]) -> T:
    try:
        return await answer
    except Exception as error:
        await _abort(context, _typed(error))
        raise


async def _abort(context: grpc.aio.ServicerContext, error: ThinwireError) -> None:
    await context.abort(code_of(error), message_of(error), trailers_of(error))


class Server:
    """One listening gRPC server over an engine. Start, then stop; not reusable. All methods run on one event loop."""

    def __init__(self, engine: Engine, address: str, options: ServerOptions | None = None) -> None:
        """`address` is "HOST:PORT"; port 0 takes a free one (see `start`)."""
        self._engine = engine
        self._address = address
        self.options = options or ServerOptions()

    async def start(self) -> int:
        """Listens, sets health to SERVING and returns the bound port. Raises `OSError` when the address is taken."""
        limit = self.options.max_message_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # else a second server on the port starts without an error and takes half
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # edges behind NAT ping to keep the mapping
            ]
        )
        self._service = InferenceService(self._engine, self.options)
        self._health = health.aio.HealthServicer()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self.options.reflection:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: is the port taken?") from error
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float | None = None) -> bool:
        """NOT_SERVING; no new calls; what was accepted is answered within the grace; the engine is closed.

        Says whether everything that had been accepted was answered.
        """
        grace_s = self.options.grace_s if grace_s is None else grace_s
        end = time.monotonic() + grace_s
        await self._health.enter_graceful_shutdown()
        self._service.stop_streams()
        await self._server.stop(grace_s)
        return await asyncio.to_thread(self._engine.close, max(0.0, end - time.monotonic()))


@contextlib.contextmanager
def background_server(engine: Engine, address: str = "127.0.0.1:0", options: ServerOptions | None = None):
    """A real server on its own thread, for notebooks, tests and benchmarks: yields "HOST:PORT".

    At the end it stops as `Server.stop` does, which closes the engine too.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="thinwire-server", daemon=True)
    thread.start()
    server = Server(engine, address, options)
    try:
        port = asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
