"""ClassifyStream: frames of one stream, a window of them at a time, answered out of order, some of them in steps."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import grpc

from cloud.engine.items import Answer
from cloud.errors import InvalidRequest, QueueFull, ShuttingDown, UnknownFrame
from cloud.front.answering import Answering, Context, Source
from cloud.front.evidence import Waiting
from cloud.front.label_sets import LabelSet
from cloud.front.replies import abort, classified, frame_error, source_of
from thinwire.errors import ChecksumMismatch
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

_STREAMS = itertools.count(1)


class FrameStream:
    """One call. `run` reads until the client is done or `stopping` is set, and answers all that it has read.

    At most `window` frames are being computed at a time; reading stops meanwhile, so HTTP/2 flow control slows the
    client. Frames answered by `need_more` leave the window and wait in `Answering.evidence`: those of a spool outlive
    their stream, so that a device whose link broke in between goes on where it was.
    """

    def __init__(self, answering: Answering, context: Context, deadline: float | None) -> None:
        self._answering = answering
        self._context = context
        self._deadline = deadline
        self._spool = answering.spool(context)
        self._defaults = pb.ClassifyRequest()
        self._noted: tuple[str, ...] = ()  # labels whose notes this stream has got
        self._owner = f"spool {self._spool}" if self._spool else f"stream {next(_STREAMS)}"
        self._said: set[str] = set()  # notes that this stream has got once
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
            if not self._spool:
                self._answering.evidence.forget(self._owner)

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
        if message.follows:
            return await self._following(message.request)
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

    async def _following(self, request: pb.ClassifyRequest) -> pb.ClassifyStreamResponse:
        """A further packet of a frame, with what is held of it; by itself where that is nothing."""
        evidence = self._answering.evidence
        held = evidence.take(self._owner, request.frame_id)
        if held is not None and held.clip_id != self._answering.clip_id(held.request.clip):
            held = None  # the server has another CLIP by now
        question = request if held is None else held.request
        try:
            if not self._spool:
                self._answering.charge(self._context)
            labels = self._answering.labels_of(question)

            async def compute() -> pb.ClassifyResponse:
                if self._spool:
                    self._answering.charge(self._context)
                return await self._second_answer(request, question, held, labels)

            repeats = self._answering.repeats
            result = await repeats.answer(repeats.key(self._spool, question, labels), compute)
        except BaseException:  # the packet may come again, and what is held has not been used
            if held is not None:
                evidence.keep(self._owner, request.frame_id, held)
            raise
        return pb.ClassifyStreamResponse(result=result)

    async def _second_answer(
        self, request: pb.ClassifyRequest, question: pb.ClassifyRequest, held: Waiting | None, labels: LabelSet
    ) -> pb.ClassifyResponse:
        source = source_of(request.image, self._answering.options.max_image_file_bytes)
        if "packet" not in source:
            raise InvalidRequest("what follows a packet is a packet: send an image file as a request of its own")
        packet = Packet.from_bytes(source["packet"])
        earlier = None if held is None else self._answering.earlier(held, packet)
        asked = {"packet": packet}, labels, question.top_k, question.clip, self._deadline, None, earlier
        answer = await self._admitted(*asked)
        notes: tuple[str, ...] = ()
        if held is None:
            notes = (
                f"frame {request.frame_id}: nothing of it is held (any more) that this packet could follow: "
                f"answered by its packet of {answer.bundle} alone",
            )
        elif earlier is None:
            notes = self._once(_no_calibration(held.bundle, answer.bundle))
        clip = self._answering.clip_name(question.clip)
        went = "fused" if earlier is not None else "alone"
        self._answering.report(self._context, {"packet": packet}, labels, question.clip, answer, went)
        return classified(answer, labels.places, clip, request.frame_id, notes=notes)

    def _once(self, note: str) -> tuple[str, ...]:
        if note in self._said:
            return ()
        self._said.add(note)
        return (note,)

    def _extended(self, more: pb.MoreLayers) -> Waiting:
        """The waiting frame with its new layers, which must be those that its edge has. It stops waiting."""
        held = self._answering.evidence.take(self._owner, more.frame_id)
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
        asking = self._answering.asking(waiting) if waiting else None
        temperature = asking.temperature if asking else None
        answer = await self._admitted(source, labels, request.top_k, request.clip, self._deadline, temperature)
        clip = self._answering.clip_name(request.clip)
        # Once for each list: a request without labels has got those of the last one by now
        with_notes = bool(request.labels) and self._noted != labels.labels
        self._noted = labels.labels
        notes: tuple[str, ...] = ()
        offered = waiting.offers if waiting else {}
        if offered and asking is None:
            notes = self._once(_no_calibration(answer.bundle, "what this device offers"))
        result = classified(answer, labels.places, clip, request.frame_id, with_notes=with_notes, notes=notes)
        if asking:
            more = asking.more(answer.margin, waiting.progressive.confidence or self._answering.options.confidence)
            if more is not None:
                self._keep(request.frame_id, waiting, answer)
                more.so_far.CopyFrom(result)
                return pb.ClassifyStreamResponse(need_more=more)
        went = "first" if offered else ""
        self._answering.report(self._context, source, labels, request.clip, answer, went)
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

    def _keep(self, frame_id: int, waiting: Waiting, answer: Answer) -> None:
        known = replace(
            waiting,
            vector=answer.embedding if waiting.offers else None,
            bundle=answer.bundle or "",
            layers=answer.layers,
            clip_id=self._answering.clip_id(waiting.request.clip),
        )
        self._answering.evidence.keep(self._owner, frame_id, known)


def _no_calibration(first: str, second: str) -> str:
    return (
        f"this server holds no calibration of {first} with {second}: each packet is answered by itself "
        "(`thinwire-bench cascade --fit` makes one)"
    )


def _seen(task: asyncio.Task) -> None:
    """Reads and writes of a call that ended fail; nothing waits for them, and asyncio would log that."""
    if not task.cancelled():
        task.exception()
