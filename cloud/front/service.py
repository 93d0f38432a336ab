"""The RPCs of proto/thinwire/v1/inference.proto over an engine. Knows no tensors."""

from __future__ import annotations

import asyncio
import io
import time

import numpy as np
from PIL import Image

from cloud.engine.engine import Engine
from cloud.engine.items import Answer
from cloud.errors import InvalidRequest
from cloud.front.admission import RateLimiter
from cloud.front.answering import Answering, Context
from cloud.front.info import server_info
from cloud.front.label_parts import LabelParts
from cloud.front.label_sets import check_label_set
from cloud.front.limits import ServerOptions
from cloud.front.replies import (
    checked_texts,
    classified,
    deadline_of,
    frame_error,
    or_abort,
    source_of,
    templates_of,
    timing_of,
)
from cloud.front.streams import FrameStream
from thinwire.contract import TIME_KEY
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

PART_WAIT_S = 2.0  # how long the last piece's answer waits for the labels' vectors; then the client asks again


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Every failure is a status with details (`cloud.front.status`); limits are those of `ServerOptions`."""

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        limiter: RateLimiter | None = None,
        tokens_are_checked: bool = False,
    ) -> None:
        self.options = options
        self._engine = engine
        self._answering = Answering(engine, options, limiter, tokens_are_checked)
        self._parts = LabelParts()
        self._making: dict[bytes, asyncio.Future[pb.RegisterLabelsResponse]] = {}  # by the hash of the upload
        self._stopping = asyncio.Event()

    def stop_streams(self) -> None:
        """Streams answer the frames they have read, then end."""
        self._stopping.set()

    @property
    def repeated(self) -> int:
        """How many answers were given that had been given before."""
        return self._answering.repeats.counts["repeated"]

    # ---------------------------------------------------------------- RPCs

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context):
        # For devices whose clock may be wrong: certificates and the age of frames depend on it
        await context.send_initial_metadata(((TIME_KEY, f"{time.time():.3f}"),))
        return await or_abort(context, asyncio.to_thread(server_info, self._engine, self.options))

    async def Classify(self, request: pb.ClassifyRequest, context: Context):
        return await or_abort(context, self._classify(request, context))

    async def ClassifyStream(self, request_iterator, context: Context) -> None:
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await FrameStream(self._answering, context, deadline_of(context)).run(stopping)
        finally:
            stopping.cancel()

    async def Embed(self, request: pb.EmbedRequest, context: Context):
        return await or_abort(context, self._embed(request, context))

    async def EncodeText(self, request: pb.EncodeTextRequest, context: Context):
        return await or_abort(context, self._encode_text(request, context))

    async def Rank(self, request: pb.RankRequest, context: Context):
        return await or_abort(context, self._rank(request, context))

    async def Decode(self, request: pb.DecodeRequest, context: Context):
        return await or_abort(context, self._decode(request, context))

    async def RegisterLabels(self, request: pb.RegisterLabelsRequest, context: Context):
        return await or_abort(context, self._register(request, context))

    async def RegisterLabelsPart(self, request: pb.RegisterLabelsPartRequest, context: Context):
        return await or_abort(context, self._register_part(request, context))

    # ---------------------------------------------------------------- one request

    async def _classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        spool = self._answering.spool(context)
        if not spool:
            self._answering.charge(context)
            self._engine.check_room()  # saying no must cost less than looking at what was sent
        labels = self._answering.labels_of(request)

        async def compute() -> pb.ClassifyResponse:
            if spool:  # a repeat costs its client nothing
                self._answering.charge(context)
            source = source_of(request.image, self.options.max_image_file_bytes)
            answer = await self._answering.answer_image(
                source, labels, request.top_k, request.clip, deadline_of(context)
            )
            self._answering.report(context, source, labels, request.clip, answer)
            clip = self._answering.clip_name(request.clip)
            return classified(answer, labels.places, clip, request.frame_id, with_notes=bool(request.labels))

        return await self._answering.repeats.answer(self._answering.repeats.key(spool, request, labels), compute)

    async def _embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        self._answering.charge(context)
        source = source_of(request.image, self.options.max_image_file_bytes)
        answer = await self._answering.answer_image(source, None, 0, request.clip, deadline_of(context))
        self._answering.report(context, source, None, request.clip, answer)
        return pb.EmbedResponse(
            embedding=pb.Embedding(values=answer.embedding.tolist()),
            timing=timing_of(answer),
            model=self._model(request.clip, answer),
            frame_id=request.frame_id,
        )

    async def _encode_text(self, request: pb.EncodeTextRequest, context: Context) -> pb.EncodeTextResponse:
        self._answering.charge(context)
        texts = checked_texts(request.texts, self.options.max_texts)
        templates = templates_of(request.prompt_set, request.templates)
        vectors = await self._text_vectors(texts, templates, request.clip, context)
        embeddings = [pb.Embedding(values=vector.tolist()) for vector in vectors]
        return pb.EncodeTextResponse(embeddings=embeddings, model=self._model(request.clip))

    async def _rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        query = request.WhichOneof("query")
        if query is None:
            raise InvalidRequest("the request holds no query: set image (to order texts) or text (to order images)")
        if (query == "image" and request.images) or (query == "text" and request.texts):
            raise InvalidRequest(f"a query by {query} orders {'texts' if query == 'image' else 'images'}: send those")
        images = [request.image] if query == "image" else list(request.images)
        if not 1 <= len(images) <= self.options.max_rank_images:
            raise InvalidRequest(f"{len(images)} images to rank, this server takes 1 to {self.options.max_rank_images}")
        texts = checked_texts(request.texts if query == "image" else [request.text], self.options.max_texts)
        templates = templates_of(request.prompt_set, request.templates)
        self._answering.charge(context, len(images))
        answers = [asyncio.ensure_future(self._vector(image, request.clip, context)) for image in images]
        try:
            vectors = await self._text_vectors(texts, templates, request.clip, context)  # (T, D)
            seen = await asyncio.gather(*answers, return_exceptions=True)
        finally:
            for answer in answers:
                answer.cancel()
        response = pb.RankResponse(model=self._model(request.clip))
        for place, outcome in enumerate(seen):
            if isinstance(outcome, BaseException):
                if query == "image" or not isinstance(outcome, Exception):
                    raise outcome
                response.failures.add(index=place, error=frame_error(outcome))
        good = [place for place, outcome in enumerate(seen) if isinstance(outcome, np.ndarray)]
        if query == "image":
            places, cosines = list(range(len(texts))), vectors @ seen[0]
        else:
            places, cosines = good, np.array([seen[place] @ vectors[0] for place in good], np.float32)
        order = np.argsort(-cosines, kind="stable")[: request.top_k or None]
        for row in order:
            response.ranked.add(index=places[row], similarity=float(cosines[row]))
        return response

    async def _decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        self._answering.charge(context)
        packet = Packet.from_bytes(request.packet)  # raises for one that is too large, before anything is read
        future = self._engine.submit_picture(request.packet, deadline=deadline_of(context))
        pixels = await asyncio.wrap_future(future)
        bundle = self._engine.intake.bundles.get(packet.model_id)
        model = pb.ModelInfo(bundle=bundle.name if bundle else "", layers=len(packet.layers))
        png = await asyncio.to_thread(_png, pixels)
        return pb.DecodeResponse(png=png, width=pixels.shape[1], height=pixels.shape[0], model=model)

    async def _register(self, request: pb.RegisterLabelsRequest, context: Context) -> pb.RegisterLabelsResponse:
        self._answering.charge(context)
        return await self._made_ready(request, deadline_of(context))

    async def _made_ready(self, request: pb.RegisterLabelsRequest, deadline: float | None) -> pb.RegisterLabelsResponse:
        labels = check_label_set(request.labels, request.prompt_set, request.templates)
        # Ready now: the first image need not wait for the text tower. Kept only when that went well.
        await asyncio.wrap_future(
            self._engine.submit_texts(labels.labels, templates=labels.templates, clip=request.clip, deadline=deadline)
        )
        return pb.RegisterLabelsResponse(
            label_set=self._answering.label_sets.add(labels),
            labels=len(labels.labels),
            notes=self._answering.label_notes(labels, request.clip),
        )

    async def _register_part(
        self, request: pb.RegisterLabelsPartRequest, context: Context
    ) -> pb.RegisterLabelsPartResponse:
        held_bytes, whole = self._parts.take(request)
        response = pb.RegisterLabelsPartResponse(held_bytes=held_bytes)
        if whole is None:
            return response
        # The vectors of thousands of labels take longer than a device's deadline: they are made whoever still asks
        work = self._making.get(request.upload)
        if work is None:
            self._answering.charge(context)
            work = self._making[request.upload] = asyncio.ensure_future(self._made_ready(whole, None))
            work.add_done_callback(lambda _: self._making.pop(request.upload, None))
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask again
        # Half of what the client waits at most: an answer that comes late is none
        left_s = context.time_remaining()
        wait_s = PART_WAIT_S if left_s is None else min(PART_WAIT_S, max(0.0, left_s / 2))
        done, _ = await asyncio.wait({work}, timeout=wait_s)
        if done:
            response.registered.CopyFrom(work.result())
        else:
            labels = check_label_set(whole.labels, whole.prompt_set, whole.templates)
            response.texts_done, response.texts = self._answering.head_progress(labels, whole.clip)
        return response

    async def _vector(self, image: pb.ImageInput, clip: str, context: Context) -> np.ndarray:
        source = source_of(image, self.options.max_image_file_bytes)
        return (await self._answering.answer_image(source, None, 0, clip, deadline_of(context))).embedding

    async def _text_vectors(self, texts, templates, clip: str, context: Context) -> np.ndarray:
        """Texts → unit vectors float32 (T, D)."""
        future = self._engine.submit_texts(texts, templates=templates, clip=clip, deadline=deadline_of(context))
        return await asyncio.wrap_future(future)

    def _model(self, clip: str, answer: Answer | None = None) -> pb.ModelInfo:
        if answer is None:
            return pb.ModelInfo(clip=self._answering.clip_name(clip))
        return pb.ModelInfo(clip=self._answering.clip_name(clip), bundle=answer.bundle or "", layers=answer.layers)


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
