"""ClassifyStream: frames of one stream, a window of them at a time, answered out of order, some of them in steps."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import grpc

from cloud.engine.items import Answer
from cloud.errors import InvalidRequest, QueueFull, ShuttingDown, UnknownFrame
from cloud.front.answering import Answering, Context, Source
from cloud.front.label_sets import LabelSet
from cloud.front.replies import abort, classified, frame_error, source_of
from thinwire.errors import ChecksumMismatch
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Waiting:
    """A frame whose edge may send further layers."""

    request: pb.ClassifyRequest  # without its image
    packet: Packet
    progressive: pb.Progressive


class FrameStream:
    """One call. `run` reads until the client is done or `stopping` is set, and answers all that it has read.

    At most `window` frames are being computed at a time; reading stops meanwhile, so HTTP/2 flow control slows the
    client. Frames answered by `need_more` leave the window; twice as many of them are kept, the oldest go first.
    """

    def __init__(self, answering: Answering, context: Context, deadline: float | None) -> None:
        self._answering = answering
        self._context = context
        self._deadline = deadline
        self._spool = answering.spool(context)
        self._defaults = pb.ClassifyRequest()
        self._noted: tuple[str, ...] = ()  # labels whose notes this stream has got
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._window = asyncio.Semaphore(answering.options.stream_window)
        self._writing = asyncio.Lock()
        self._under_way = self._held_back = 0

    async def run(self, stopping: asyncio.Future) -> None:
        frames: set[asyncio.Task] = set()
        try:
            while True:
                await self._window.acquire()
                # Never a timeout around a read: cancelling one cancels the whole call. A stop leaves it pending.
                read = asyncio.ensure_future(self._context.read())
                read.add_done_callback(_seen)
                await asyncio.wait({read, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done() or read.result() is grpc.aio.EOF:
                    break
                message = self._with_defaults(read.result())
                frame = asyncio.ensure_future(self._answer(message))
                frames.add(frame)
                frame.add_done_callback(frames.discard)
                frame.add_done_callback(_seen)
            if frames:
                await asyncio.gather(*frames)
            if not read.done():
                error = ShuttingDown("the server is stopping; every frame it had read is answered")
                await abort(self._context, error)
        finally:
            for frame in frames:
                frame.cancel()

    def _with_defaults(self, message: pb.ClassifyStreamRequest) -> pb.ClassifyStreamRequest:
        """Labels and prompts cross once: a request without takes those of the last request that had some."""
        if message.HasField("more"):
            return message
        request = message.request
        if request.labels or request.label_set:
            self._defaults = pb.ClassifyRequest(
                labels=request.labels,
                prompt_set=request.prompt_set,
                templates=request.templates,
                top_k=request.top_k,
                label_set=request.label_set,
                clip=request.clip,
            )
        else:
            request.MergeFrom(self._defaults)
        return message

    async def _answer(self, message: pb.ClassifyStreamRequest) -> None:
        frame_id = message.more.frame_id if message.HasField("more") else message.request.frame_id
        try:
            try:
                response = await self._outcome(message)
            except Exception as error:  # nothing that a frame holds ends its stream
                response = pb.ClassifyStreamResponse(error=frame_error(error))
            response.frame_id = frame_id
            async with self._writing:
                await self._context.write(response)
        finally:
            self._window.release()

    async def _outcome(self, message: pb.ClassifyStreamRequest) -> pb.ClassifyStreamResponse:
        repeats = self._answering.repeats
        if message.HasField("more"):
            self._answering.charge(self._context)
            waiting = self._extended(message.more)
            labels = self._answering.labels_of(waiting.request)
            response = await self._answer_image(waiting.request, labels, {"packet": waiting.packet}, waiting)
            if response.HasField("result"):
                repeats.keep(repeats.key(self._spool, waiting.request, labels), response.result)
            return response
        request = message.request
        if not self._spool:
            self._answering.charge(self._context)
        labels = self._answering.labels_of(request)
        unsure: list[pb.ClassifyStreamResponse] = []

        async def compute() -> pb.ClassifyResponse | None:
            if self._spool:  # a repeat costs its client nothing
                self._answering.charge(self._context)
            response = await self._first_answer(message, labels)
            if response.HasField("result"):
                return response.result
            unsure.append(response)  # no answer yet, and nothing for those who ask again
            return None

        result = await repeats.answer(repeats.key(self._spool, request, labels), compute)
        return unsure[0] if result is None else pb.ClassifyStreamResponse(result=result)

    async def _first_answer(self, message: pb.ClassifyStreamRequest, labels: LabelSet) -> pb.ClassifyStreamResponse:
        request = message.request
        source = source_of(request.image, self._answering.options.max_image_file_bytes)
        if not message.HasField("progressive"):
            return await self._answer_image(request, labels, source, None)
        if "packet" not in source:
            raise InvalidRequest("progressive answers are for packets: an image file has no layers")
        if not 0 <= message.progressive.confidence < 1:
            raise InvalidRequest("progressive.confidence is a probability, 0 (the server's default) to below 1")
        packet = Packet.from_bytes(source["packet"])
        request.ClearField("image")  # its bytes are in `packet`
        return await self._answer_image(
            request, labels, {"packet": packet}, Waiting(request, packet, message.progressive)
        )

    def _extended(self, more: pb.MoreLayers) -> Waiting:
        """The waiting frame with its new layers, which must be those that its edge has. It stops waiting."""
        held = self._waiting.pop(more.frame_id, None)
        if held is None:
            raise UnknownFrame(
                f"frame {more.frame_id} is not waiting for layers, or no longer: send its whole packet as a new request"
            )
        packet = Packet(held.packet.model_id, (*held.packet.layers, *more.layers))
        if int.from_bytes(packet.to_bytes()[-4:], "little") != more.packet_crc32c:
            raise ChecksumMismatch(
                "these layers do not follow those sent before: send its whole packet as a new request"
            )
        return Waiting(held.request, packet, held.progressive)

    async def _answer_image(
        self, request: pb.ClassifyRequest, labels: LabelSet, source: Source, waiting: Waiting | None
    ) -> pb.ClassifyStreamResponse:
        calibration = None
        if waiting and len(waiting.packet.layers) < waiting.progressive.max_layers:
            calibration = self._answering.calibration(waiting.packet, request.clip)
        temperature = calibration.temperature if calibration else None
        answer = await self._admitted(source, labels, request.top_k, request.clip, self._deadline, temperature)
        clip = self._answering.clip_name(request.clip)
        # Once for each list: a request without labels has got those of the last one by now
        with_notes = bool(request.labels) and self._noted != labels.labels
        self._noted = labels.labels
        result = classified(answer, labels.places, clip, request.frame_id, with_notes=with_notes)
        if calibration:
            confidence = calibration.confidence(answer.margin)
            if confidence < (waiting.progressive.confidence or self._answering.options.confidence):
                self._keep(request.frame_id, waiting)
                more = pb.NeedMore(layer=len(waiting.packet.layers) + 1, so_far=result, confidence=confidence)
                return pb.ClassifyStreamResponse(need_more=more)
        self._answering.report(self._context, source, labels, request.clip, answer)
        return pb.ClassifyStreamResponse(result=result)

    async def _admitted(self, *question) -> Answer:
        """The engine's answer. A full queue does not refuse a stream that has other frames under way: their answers
        will make room, and until then its window holds the client back."""
        self._under_way += 1
        try:
            while True:
                try:
                    return await self._answering.answer_image(*question)
                except QueueFull as error:
                    if self._under_way - self._held_back <= 1:
                        raise
                    self._held_back += 1
                    try:
                        await asyncio.sleep(error.retry_after_ms / 1000)
                    finally:
                        self._held_back -= 1
        finally:
            self._under_way -= 1

    def _keep(self, frame_id: int, waiting: Waiting) -> None:
        self._waiting[frame_id] = waiting
        self._waiting.move_to_end(frame_id)
        while len(self._waiting) > 2 * self._answering.options.stream_window:
            self._waiting.popitem(last=False)


def _seen(task: asyncio.Task) -> None:
    """Reads and writes of a call that ended fail; nothing waits for them, and asyncio would log that."""
    if not task.cancelled():
        task.exception()
