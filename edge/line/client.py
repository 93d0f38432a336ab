"""`Client`: an image in, labels out. The Python face of the edge; the command line is a thin caller."""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from edge.defaults import DEFAULT_BUNDLE, DEFAULT_IN_FLIGHT, DEFAULT_SERVER, DEFAULT_TIMEOUT_S, DEFAULT_TOP_K
from edge.encoder import Encoder, ImageLike, default_rate
from edge.errors import ConnectionOptionsError, FrameFailed, Refused, described
from edge.line.label_handles import LabelHandles, is_unknown
from edge.line.label_upload import Progress
from edge.line.result import Prediction, Result, ServerTiming, read_reply
from edge.line.uplink import Line, Uplink
from thinwire.bundle import Bundle, load_bundle
from thinwire.contract import Reason
from thinwire.errors import LabelError, ThinwireError
from thinwire.labels import DEFAULT_PROMPT_SET, resolve_templates, validate_labels
from thinwire.v1 import inference_pb2 as pb

__all__ = ["Client", "Outcome", "Prediction", "Result", "ServerTiming"]

NO_EDGE_MS = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """What became of one image of `classify_many`: exactly one of `result` and `error` is set.

    index: its place among the images given; image: as it was given.
    """

    index: int
    image: ImageLike
    result: Result | None = None
    error: ThinwireError | None = None

    @property
    def ok(self) -> bool:
        return self.result is not None


@dataclass(frozen=True)
class Question:
    """What is asked of every image of a run, checked once. Raises `LabelError`."""

    labels: tuple[str, ...]
    top_k: int
    prompt_set: str

    @classmethod
    def check(cls, labels: Iterable[str], top_k: int, prompt_set: str) -> Question:
        if not 1 <= top_k < 1 << 31:
            raise LabelError(f"top_k must be 1 or more, not {top_k}")
        resolve_templates(prompt_set)
        return cls(validate_labels(labels), top_k, prompt_set)

    def request(self, **source: bytes) -> pb.ClassifyRequest:
        """The request for one image: `packet=` or `image_file=`."""
        image = pb.ImageInput(**source)
        return pb.ClassifyRequest(image=image, labels=self.labels, top_k=self.top_k, prompt_set=self.prompt_set)


@dataclass(frozen=True)
class PreparedRequest:
    """One image's request, ready to send, with what `read_reply` needs beside the reply."""

    request: pb.ClassifyRequest
    sent_bytes: int
    layers: int
    edge_ms: tuple[float, float, float, float]
    notes: tuple[str, ...] = ()

    def result(
        self, reply: pb.ClassifyResponse, round_trip_ms: float, sent: pb.ClassifyRequest | None = None
    ) -> Result:
        """`sent`: the request as it went, where its labels were replaced by a handle."""
        request_bytes = (self.request if sent is None else sent).ByteSize()
        return read_reply(reply, self.sent_bytes, self.layers, self.edge_ms, round_trip_ms, request_bytes, self.notes)


def prepare(encoder: Encoder, image: ImageLike, rate: str, question: Question) -> PreparedRequest:
    """Image → request. Raises `ImageError`, `RateError`, `EncoderError`; `FrameFailed` for an unexpected exception."""
    try:
        encoded = encoder.encode_image(image, rate)
        data = encoded.packet.to_bytes()
    except ThinwireError:
        raise
    except MemoryError as error:
        raise FrameFailed("there is not enough memory for this picture: scale it down") from error
    except Exception as error:
        raise FrameFailed(described(error)) from error
    edge_ms = (encoded.decode_image_ms, encoded.preprocess_ms, encoded.encode_ms, encoded.code_ms)
    notes = (encoded.note,) if encoded.note else ()
    return PreparedRequest(question.request(packet=data), len(data), len(encoded.packet.layers), edge_ms, notes)


def prepare_file(data: bytes, question: Question) -> PreparedRequest:
    """An image file's bytes → request that sends them as they are."""
    return PreparedRequest(question.request(image_file=data), len(data), 0, NO_EDGE_MS)


def check_server(info: pb.GetServerInfoResponse, bundle: Bundle, server: str) -> None:
    """Raises `Refused` (UNKNOWN_MODEL), naming the server's bundles, unless it decodes this bundle's packets."""
    if any(each.model_id == bundle.model_id for each in info.bundles):
        return
    held = ", ".join(f"{each.name} ({each.model_id.hex()})" for each in info.bundles) or "none"
    raise Refused(
        f"{server} does not hold bundle {bundle.name!r} ({bundle.model_id.hex()}); it holds: {held}. "
        f"Start it with `thinwire-cloud serve --bundle {bundle.path}`, or use one of its own with --bundle",
        Reason.UNKNOWN_MODEL,
    )


class Client:
    """One bundle's encoder and one channel to one server.

    server: HOST:PORT. bundle: name of a shipped bundle, a bundle's folder, or a loaded `Bundle`; None for the shipped
    default. rate: name of a rate of the bundle; None for "mid" (or the middle one). threads, precision, provider: as
    for `edge.encoder.Encoder`. timeout_s: deadline of each call, retries included. tls, root_certificate, token,
    client_certificate, client_key, device_id: as for `edge.line.uplink.Line`.

    Guarantees: nothing is sent, and no connection made, before the first call; every error is a `ThinwireError` whose
    text names the fix. May be shared by threads; not by forked processes. Requirement: the server holds the same
    bundle, by content, whatever its name (`check` tells). Labels that are asked for again are registered with the
    server and named by a handle: `handles.counts` tells the bytes saved (`edge.line.label_handles`).

    >>> with Client("127.0.0.1:50051", rate="low") as client:           # doctest: +SKIP
    ...     print(client.classify("cat.jpg", ["cat", "dog"]).best)
    Prediction(label='cat', probability=0.97, similarity=0.31)
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
        line = Line(
            server, timeout_s, tls, root_certificate, token, client_certificate, client_key, device_id=device_id
        )  # first: a typo should not wait for a model
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle or DEFAULT_BUNDLE)
        self.rate = rate or default_rate(self.bundle)
        self.bundle.n_layers(self.rate)
        self.encoder = Encoder(self.bundle, threads, precision, provider)
        self.uplink = Uplink(line)
        self.handles = LabelHandles()
        self.on_label_progress: Callable[[Progress], None] = lambda progress: None  # of labels that cross in pieces
        self._registering = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls that are still running raise `ClientClosed`."""
        self.uplink.close()

    def check(self) -> pb.GetServerInfoResponse:
        """Asks the server what it is; fails early where a run would fail on every image.

        Raises `ServerUnreachable`, or `Refused` when it does not hold this client's bundle.
        """
        info = self.uplink.info()
        check_server(info, self.bundle, self.uplink.line.server)
        return info

    def classify(
        self,
        image: ImageLike,
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
        rate: str | None = None,
    ) -> Result:
        """Ranks `labels` for one image: a path, a file's bytes, a Pillow image, or a frame uint8 (H, W, 3) RGB.

        top_k: labels wanted back. prompt_set: "1", "7" or "80" prompt templates. rate: for this image only.
        Raises `ImageError`, `LabelError`, `RateError`, `ServerUnreachable`, `ServerTimeout`, `Refused`.
        """
        question = Question.check(labels, top_k, prompt_set)
        return self.ask(prepare(self.encoder, image, rate or self.rate, question))

    def classify_file(
        self,
        data: bytes,
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
    ) -> Result:
        """Sends an image file as it is; the server makes the view. What JPEG, PNG and other peers are measured by."""
        return self.ask(prepare_file(data, Question.check(labels, top_k, prompt_set)))

    def classify_many(
        self,
        images: Iterable[ImageLike],
        labels: Sequence[str],
        top_k: int = DEFAULT_TOP_K,
        prompt_set: str = DEFAULT_PROMPT_SET,
        rate: str | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
        ordered: bool = True,
    ) -> Iterator[Outcome]:
        """One `Outcome` for each image, in input order, or as they complete with `ordered=False`. Images fail alone.

        `images` is read as answers come in: at most `in_flight` are on their way (or answered and not yet taken) at a
        time, so it may be endless. Encoding runs on the caller's thread while earlier images wait for the server. What
        would fail on every image (labels, rate) raises here, before the first.
        """
        question = Question.check(labels, top_k, prompt_set)
        chosen = rate or self.rate
        self.bundle.n_layers(chosen)
        if in_flight < 1:
            raise ConnectionOptionsError(f"in_flight must be 1 or more, not {in_flight}")
        return self._many(iter(images), chosen, question, in_flight, ordered)

    def _many(
        self, images: Iterator[ImageLike], rate: str, question: Question, in_flight: int, ordered: bool
    ) -> Iterator[Outcome]:
        waiting: deque[_Sent] = deque()  # in input order
        done: queue.SimpleQueue[_Sent] = queue.SimpleQueue()  # in order of completion
        places = itertools.count()

        def take() -> Outcome:
            if ordered:
                return self._outcome(waiting.popleft())
            sent = done.get()
            waiting.remove(sent)
            return self._outcome(sent)

        try:
            for image in images:
                waiting.append(self._send(next(places), image, rate, question, done))
                while len(waiting) >= in_flight or (waiting and ordered and waiting[0].done):
                    yield take()
            while waiting:
                yield take()
        finally:  # the caller stopped early: the remaining answers are not needed
            for sent in waiting:
                sent.cancel()

    def _send(
        self, index: int, image: ImageLike, rate: str, question: Question, done: queue.SimpleQueue[_Sent]
    ) -> _Sent:
        sent = _Sent(index, image)
        try:
            sent.prepared = prepare(self.encoder, image, rate, question)
            sent.start(self.uplink, self._shortened(sent.prepared.request), done)
        except ThinwireError as error:
            sent.error = error
            done.put(sent)
        return sent

    def _outcome(self, sent: _Sent) -> Outcome:
        if sent.error is None:
            try:
                try:
                    reply, request = self.uplink.answer(sent.call), sent.request
                except Refused as error:
                    if not is_unknown(error, sent.request):
                        raise
                    reply, request = self._again(sent.prepared.request, sent.request, sent.started)
                    sent.ended()
                return Outcome(sent.index, sent.image, sent.prepared.result(reply, sent.round_trip_ms(), request))
            except ThinwireError as error:
                sent.error = self._explained(error)
        return Outcome(sent.index, sent.image, error=sent.error)

    def ask(self, prepared: PreparedRequest) -> Result:
        """Sends one request that `prepare` or `prepare_file` made. Raises as `classify`, but for `ImageError`."""
        started = time.perf_counter()
        try:
            request = self._shortened(prepared.request)
            sent_at = time.perf_counter()
            try:
                reply = self.uplink.classify(request)
            except Refused as error:
                if not is_unknown(error, request):
                    raise
                reply, request = self._again(prepared.request, request, sent_at)
        except ThinwireError as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error
        return prepared.result(reply, 1000 * (time.perf_counter() - started), request)

    def _shortened(self, request: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """The request by its labels' handle, which is asked for first where it is worth it."""
        with self._registering:
            wanted = self.handles.registration(request)
            if wanted is not None:
                try:
                    self.handles.registered(wanted, self.uplink.register(wanted, self.on_label_progress))
                except Refused as error:
                    self.handles.refused(wanted, error)
        shortened = self.handles.shortened(request)
        self.handles.sent(shortened)
        return shortened

    def _again(
        self, whole: pb.ClassifyRequest, refused: pb.ClassifyRequest, sent_at: float
    ) -> tuple[pb.ClassifyResponse, pb.ClassifyRequest]:
        """The server has lost the handle (it was restarted): registers the labels again and retries."""
        self.handles.forget(refused.label_set, sent_at)
        request = self._shortened(whole)
        return self.uplink.classify(request), request

    def _explained(self, error: ThinwireError) -> ThinwireError:
        """A refusal of our model, with the server's own bundles by name."""
        if isinstance(error, Refused) and error.server_reason == Reason.UNKNOWN_MODEL:
            try:
                self.check()
            except Refused as explained:
                return explained
            except ThinwireError:
                return error
        return error


class _Sent:
    """One image of `classify_many` on its way."""

    def __init__(self, index: int, image: ImageLike) -> None:
        self.index, self.image = index, image
        self.prepared: PreparedRequest | None = None
        self.request: pb.ClassifyRequest | None = None  # as it went
        self.error: ThinwireError | None = None
        self.call: grpc.Future | None = None
        self.started = self._ended = 0.0

    def start(self, uplink: Uplink, request: pb.ClassifyRequest, done: queue.SimpleQueue[_Sent]) -> None:
        self.started = time.perf_counter()
        self.request = request
        self.call = uplink.send(request)

        def ended(_: grpc.Future) -> None:
            self.ended()
            done.put(self)

        self.call.add_done_callback(ended)

    def ended(self) -> None:
        """The answer has arrived; it need not have been read yet."""
        self._ended = time.perf_counter()

    @property
    def done(self) -> bool:
        return self.error is not None or self.call.done()

    def round_trip_ms(self) -> float:
        # The callback may lag behind result() by a moment
        return 1000 * ((self._ended or time.perf_counter()) - self.started)

    def cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()
