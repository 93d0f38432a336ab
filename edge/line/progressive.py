"""Progressive answers: send a little of each image first, and more only where the server asks for it.

More is a further layer of the packet, or a packet of another bundle of a ladder (`edge.line.ladder`).
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import grpc
import numpy as np

from edge.defaults import DEFAULT_IN_FLIGHT, DEFAULT_TOP_K
from edge.encoder import Encoded, ImageLike
from edge.errors import ConnectionOptionsError, Refused, ServerTimeout, ServerUnreachable
from edge.line.client import Client, Outcome, Question
from edge.line.ladder import Ladder
from edge.line.result import read_reply
from edge.line.uplink import typed_error
from thinwire.errors import ThinwireError
from thinwire.imaging import flat_note
from thinwire.labels import DEFAULT_PROMPT_SET
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb


@dataclass
class _Frame:
    """One image under way. sent_bytes: its first packet, and every MoreLayers message whole; request_bytes: all
    messages whole."""

    index: int
    image: ImageLike
    encoded: Encoded
    sent_bytes: int
    request_bytes: int
    layers: int
    started: float
    view: np.ndarray | None = None  # for packets of other bundles
    code_ms: float = 0.0  # that these took


def first_request(
    packet: Packet,
    question: Question,
    frame_id: int,
    confidence: float,
    with_labels: bool,
    ladder: Ladder | None = None,
) -> pb.ClassifyStreamRequest:
    """The frame's first message: layer 1, and the offer of the others; of a ladder the whole packet, and the offer of
    the other steps. Labels cross once a stream."""
    request = question.request(packet=(packet if ladder else packet.prefix(1)).to_bytes())
    if not with_labels:
        request = pb.ClassifyRequest(image=request.image)
    request.frame_id = frame_id
    offer = pb.Progressive(max_layers=len(packet.layers), confidence=confidence)
    for step in ladder.others if ladder else ():
        offer.others.add(model_id=step.bundle.model_id, layers=step.levels)
    return pb.ClassifyStreamRequest(request=request, progressive=offer)


def more_layers(packet: Packet, held: int, wanted: int, frame_id: int) -> pb.MoreLayers:
    """Layers held + 1 to wanted (counted from 1) of `packet`, with the checksum of the packet of all `wanted`."""
    checksum = int.from_bytes(packet.prefix(wanted).to_bytes()[-4:], "little")
    return pb.MoreLayers(frame_id=frame_id, layers=packet.layers[held:wanted], packet_crc32c=checksum)


def classify_progressive(
    client: Client,
    images: Iterable[ImageLike],
    labels: Sequence[str],
    top_k: int = DEFAULT_TOP_K,
    prompt_set: str = DEFAULT_PROMPT_SET,
    rate: str | None = None,
    confidence: float = 0.0,
    in_flight: int = DEFAULT_IN_FLIGHT,
    ladder: Ladder | None = None,
) -> Iterator[Outcome]:
    """One `Outcome` for each image, as they complete; over one stream, `in_flight` images at a time. Images fail alone.

    rate: up to which layers may be sent (None: the bundle's highest). confidence: an answer is final when further
    layers are expected to add at most 1 - confidence to the accuracy (0: as the server likes). A result's
    `packet_bytes` are all bytes of the image that were sent, `layers` those that the answer is from. A bundle that the
    server has no calibration for is answered from one layer: see `GetServerInfo`, `BundleInfo.progressive`.
    ladder: of the client's bundle first, which is sent at the ladder's rate; then further packets are those of the
    other steps, up to their rates, and `opinions` tells what each packet said.
    Raises `ServerUnreachable`, `ServerTimeout` or `Refused` when the stream itself ends.
    """
    question = Question.check(labels, top_k, prompt_set)
    chosen = rate or list(client.bundle.rates)[-1]
    client.bundle.n_layers(chosen)
    if ladder is not None and ladder.first.bundle.model_id != client.bundle.model_id:
        raise ConnectionOptionsError(f"the ladder's first step is {ladder.first.bundle.name}: open the client with it")
    if in_flight < 1 or not 0 <= confidence < 1:
        raise ConnectionOptionsError("in_flight is 1 or more, confidence 0 to below 1")
    return _run(client, iter(images), question, chosen, confidence, in_flight, ladder)


def _run(
    client: Client,
    images: Iterator[ImageLike],
    question: Question,
    rate: str,
    confidence: float,
    in_flight: int,
    ladder: Ladder | None,
) -> Iterator[Outcome]:
    places = itertools.count()
    frames: dict[int, _Frame] = {}
    with _Stream(client) as stream:
        labels_sent = False
        while True:
            failed = None
            while len(frames) < in_flight and failed is None:
                image = next(images, _END)
                if image is _END:
                    break
                index = next(places)
                try:
                    encoded, view = _encoded(client, image, rate, ladder)
                except ThinwireError as error:
                    failed = Outcome(index, image, error=error)
                    continue
                message = first_request(encoded.packet, question, index, confidence, not labels_sent, ladder)
                labels_sent = True
                sent = len(message.request.image.packet)
                layers = len(encoded.packet.layers) if ladder else 1
                frames[index] = _Frame(
                    index, image, encoded, sent, message.ByteSize(), layers, time.perf_counter(), view
                )
                stream.send(message)
            if failed is not None:
                yield failed
                continue
            if not frames:
                return
            outcome = _step(stream, frames, stream.receive(), ladder)
            if outcome is not None:
                yield outcome


_END = object()


def _encoded(client: Client, image: ImageLike, rate: str, ladder: Ladder | None) -> tuple[Encoded, np.ndarray | None]:
    """What is sent first, and the view that further packets are made from."""
    if ladder is None:
        return client.encoder.encode_image(image, rate), None
    started = time.perf_counter()
    view = ladder.widest.view(image)
    made = time.perf_counter()
    encoded = client.encoder.encode(ladder.first.view(view), ladder.first.rate)
    return replace(encoded, preprocess_ms=1000 * (made - started), note=flat_note(view, "frame")), view


def _follow(stream: _Stream, frame: _Frame, asked: pb.NeedMore, ladder: Ladder) -> bool:
    """Sends the packet of another bundle that is asked for; False where the ladder has no such one."""
    step = ladder.step_of(asked.model_id)
    if step is None or asked.layer not in step.levels:
        return False
    started = time.perf_counter()
    packet = step.packet(frame.view, asked.layer)
    frame.code_ms += 1000 * (time.perf_counter() - started)
    frame.sent_bytes += len(packet)
    frame.layers, frame.view = asked.layer, None
    request = pb.ClassifyRequest(image=pb.ImageInput(packet=packet.to_bytes()), frame_id=frame.index)
    message = pb.ClassifyStreamRequest(request=request, follows=True)
    frame.request_bytes += message.ByteSize()
    stream.send(message)
    return True


def _step(
    stream: _Stream, frames: dict[int, _Frame], answer: pb.ClassifyStreamResponse, ladder: Ladder | None
) -> Outcome | None:
    """What one message of the server finishes, if anything."""
    frame = frames.get(answer.frame_id)
    kind = answer.WhichOneof("outcome")
    if frame is None or kind is None:
        return None
    packet = frame.encoded.packet
    if kind == "need_more" and answer.need_more.model_id:
        if ladder is not None and frame.view is not None and _follow(stream, frame, answer.need_more, ladder):
            return None
    elif kind == "need_more" and frame.layers < answer.need_more.layer <= len(packet.layers):
        more = more_layers(packet, frame.layers, answer.need_more.layer, frame.index)
        frame.sent_bytes += more.ByteSize()
        frame.layers = answer.need_more.layer
        message = pb.ClassifyStreamRequest(more=more)
        frame.request_bytes += message.ByteSize()
        stream.send(message)
        return None
    del frames[answer.frame_id]
    if kind == "error":
        error = Refused(f"{stream.server} refused: {answer.error.message}", answer.error.reason)
        return Outcome(frame.index, frame.image, error=error)
    reply = answer.result if kind == "result" else answer.need_more.so_far
    encoded = frame.encoded
    code_ms = encoded.code_ms + frame.code_ms
    edge_ms = (encoded.decode_image_ms, encoded.preprocess_ms, encoded.encode_ms, code_ms)
    took_ms = 1000 * (time.perf_counter() - frame.started)
    result = read_reply(
        reply,
        frame.sent_bytes,
        frame.layers,
        edge_ms,
        took_ms,
        frame.request_bytes,
        (encoded.note,) if encoded.note else (),
    )
    return Outcome(frame.index, frame.image, result)


class _Stream:
    """A ClassifyStream whose silences are bounded by the line's timeout."""

    def __init__(self, client: Client) -> None:
        self._line = client.uplink.line
        self.server = self._line.server
        self._out: queue.SimpleQueue = queue.SimpleQueue()
        self._in: queue.SimpleQueue = queue.SimpleQueue()
        self._call = client.uplink.stream(iter(self._out.get, None))
        threading.Thread(target=self._read, name="thinwire-stream", daemon=True).start()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.put(None)
        self._call.cancel()  # nothing is left to hear: all frames are answered, or the caller has stopped early

    def send(self, message: pb.ClassifyStreamRequest) -> None:
        self._out.put(message)

    def receive(self) -> pb.ClassifyStreamResponse:
        try:
            answer = self._in.get(timeout=self._line.timeout_s)
        except queue.Empty:
            raise ServerTimeout(
                f"{self.server} sent nothing for {self._line.timeout_s:g} s: raise --timeout, or try later"
            ) from None
        if isinstance(answer, grpc.RpcError):
            raise typed_error(answer, self._line) from answer
        if answer is None:
            raise ServerUnreachable(f"{self.server} ended the stream before all frames were answered: try again")
        return answer

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._in.put(answer)
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)
