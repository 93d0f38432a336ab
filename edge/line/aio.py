"""`AsyncClient`: the same as `edge.line.client.Client` for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

import grpc

from edge.defaults import DEFAULT_BUNDLE, DEFAULT_IN_FLIGHT, DEFAULT_SERVER, DEFAULT_TIMEOUT_S, DEFAULT_TOP_K
from edge.encoder import Encoder, ImageLike, default_rate
from edge.errors import ClientClosed, ConnectionOptionsError, Refused, ServerTimeout
from edge.line.client import Outcome, PreparedRequest, Question, check_server, prepare, prepare_file
from edge.line.label_handles import LabelHandles, is_unknown
from edge.line.label_upload import in_pieces, upload
from edge.line.result import Result
from edge.line.uplink import CHECK_TIMEOUT_S, Line, typed_error
from thinwire.bundle import Bundle, load_bundle
from thinwire.contract import Reason
from thinwire.errors import ThinwireError
from thinwire.labels import DEFAULT_PROMPT_SET
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc


class AsyncClient:
    """`Client` with awaitable calls; arguments, guarantees and errors are the same. It may be made anywhere,
    and belongs to the event loop of its first call.

    Encoding runs on a thread, so the loop stays free; start several `classify` at once with `asyncio.gather` to keep
    the link busy.

    >>> async def main():                                               # doctest: +SKIP
    ...     async with AsyncClient("127.0.0.1:50051") as client:
    ...         print((await client.classify("cat.jpg", ["cat", "dog"])).best.label)
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        rate: str | None = None,
        threads: int = 1,
        precision: str = "auto",
        provider: str = "cpu",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: bool = False,
        root_certificate: str | os.PathLike[str] | None = None,
        token: str | None = None,
        client_certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
        device_id: str | None = None,
    ) -> None:
        self.line = Line(
            server, timeout_s, tls, root_certificate, token, client_certificate, client_key, device_id=device_id
        )
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle or DEFAULT_BUNDLE)
        self.rate = rate or default_rate(self.bundle)
        self.bundle.n_layers(self.rate)
        self.encoder = Encoder(self.bundle, threads, precision, provider)
        self._credentials = self.line.credentials()
        self._channel: grpc.aio.Channel | None = None  # made by the first call: it belongs to that call's event loop
        self._stub: inference_pb2_grpc.InferenceServiceStub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.handles = LabelHandles()
        self._takes_parts = True
        self._registering = asyncio.Lock()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()

    async def check(self) -> pb.GetServerInfoResponse:
        """As `Client.check`."""
        timeout_s = min(CHECK_TIMEOUT_S, self.line.timeout_s)
        info = await self._call("GetServerInfo", pb.GetServerInfoRequest(), timeout_s, asked_only_info=True)
        check_server(info, self.bundle, self.line.server)
        return info

    async def classify(
        self,
        image: ImageLike,
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
        rate: str | None = None,
    ) -> Result:
        """As `Client.classify`."""
        question = Question.check(labels, top_k, prompt_set)
        return await self._ask(await asyncio.to_thread(prepare, self.encoder, image, rate or self.rate, question))

    async def classify_file(
        self,
        data: bytes,
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
    ) -> Result:
        """As `Client.classify_file`."""
        return await self._ask(prepare_file(data, Question.check(labels, top_k, prompt_set)))

    async def classify_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
        rate: str | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
        ordered: bool = True,
    ) -> AsyncIterator[Outcome]:
        """As `Client.classify_many`; `images` may be an asynchronous iterable too, such as a queue of camera frames.

        An ordinary iterable is read on the event loop. Wrong labels and rates raise at the first step.
        """
        question = Question.check(labels, top_k, prompt_set)
        chosen = rate or self.rate
        self.bundle.n_layers(chosen)
        if in_flight < 1:
            raise ConnectionOptionsError(f"in_flight must be 1 or more, not {in_flight}")

        async def one(index: int, image: ImageLike) -> Outcome:
            try:
                prepared = await asyncio.to_thread(prepare, self.encoder, image, chosen, question)
                return Outcome(index, image, await self._ask(prepared))
            except ThinwireError as error:
                return Outcome(index, image, error=error)

        waiting: list[asyncio.Task[Outcome]] = []  # in input order
        index = 0
        try:
            async for image in _each(images):
                waiting.append(asyncio.create_task(one(index, image)))
                index += 1
                while len(waiting) >= in_flight or (waiting and ordered and waiting[0].done()):
                    yield await _next(waiting, ordered)
            while waiting:
                yield await _next(waiting, ordered)
        finally:  # the caller stopped early
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _ask(self, prepared: PreparedRequest) -> Result:
        started = time.perf_counter()
        try:
            request = await self._shortened(prepared.request)
            sent_at = time.perf_counter()
            try:
                reply = await self._call("Classify", request, self.line.timeout_s)
            except Refused as error:
                if not is_unknown(error, request):
                    raise
                self.handles.forget(request.label_set, sent_at)
                request = await self._shortened(prepared.request)
                reply = await self._call("Classify", request, self.line.timeout_s)
        except Refused as error:
            if error.server_reason == Reason.UNKNOWN_MODEL:
                await self.check()  # raises with the server's bundles by name
            raise
        return prepared.result(reply, 1000 * (time.perf_counter() - started), request)

    async def _shortened(self, request: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """As `Client._shortened`."""
        async with self._registering:
            wanted = self.handles.registration(request)
            if wanted is not None:
                try:
                    self.handles.registered(wanted, await self._register(wanted))
                except Refused as error:
                    self.handles.refused(wanted, error)
        shortened = self.handles.shortened(request)
        self.handles.sent(shortened)
        return shortened

    async def _register(self, wanted: pb.RegisterLabelsRequest) -> pb.RegisterLabelsResponse:
        """As `Uplink.register`."""
        if in_pieces(wanted) and self._takes_parts:
            steps = upload(wanted)
            try:
                request = next(steps)
                while True:
                    try:
                        reply = await self._call("RegisterLabelsPart", request, self.line.timeout_s)
                    except Refused as error:
                        if error.server_reason != Reason.UNIMPLEMENTED:
                            raise
                        self._takes_parts = False
                        break
                    except ServerTimeout as error:
                        request = steps.throw(error)
                    else:
                        request = steps.send(reply)
            except StopIteration as end:
                return end.value
        return await self._call("RegisterLabels", wanted, self.line.timeout_s)

    def _connected(self) -> inference_pb2_grpc.InferenceServiceStub:
        """The channel's stub. Raises `ClientClosed` on another event loop than the first call's."""
        loop = asyncio.get_running_loop()
        if self._stub is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.line.server, options=self.line.options)
            else:
                self._channel = grpc.aio.secure_channel(self.line.server, self._credentials, options=self.line.options)
            self._stub, self._loop = inference_pb2_grpc.InferenceServiceStub(self._channel), loop
        if loop is not self._loop:
            raise ClientClosed(
                f"the client of {self.line.server} belongs to the event loop of its first call, which is another one: "
                "make a new client for each asyncio.run()"
            )
        return self._stub

    async def _call(self, method: str, request: object, timeout_s: float, asked_only_info: bool = False):
        closed = ClientClosed(f"the client of {self.line.server} was closed: make a new one")
        if self._closed:
            raise closed
        try:
            call = getattr(self._connected(), method)
            return await call(request, timeout=timeout_s, metadata=self.line.metadata)
        except grpc.RpcError as error:
            raise typed_error(error, self.line, asked_only_info) from error
        except asyncio.CancelledError:
            if self._closed:  # the channel was closed under us; a cancelled task stays cancelled
                raise closed from None
            raise


async def _each(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncIterator[ImageLike]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _next(waiting: list[asyncio.Task[Outcome]], ordered: bool) -> Outcome:
    """Takes the first task out, or the first that is done."""
    if not ordered:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    task = waiting[0] if ordered else next(each for each in waiting if each.done())
    outcome = await task
    waiting.remove(task)
    return outcome
