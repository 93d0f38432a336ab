"""The RPCs of proto/thinwire/v1/inference.proto over an engine. Knows no tensors."""

from __future__ import annotations

import asyncio
import io
import time

import grpc
import numpy as np
from PIL import Image

from cloud.engine.calibration import LayerCalibration
from cloud.engine.engine import Engine
from cloud.engine.events import Seen
from cloud.engine.items import Answer
from cloud.errors import InvalidRequest
from cloud.front.admission import RateLimiter, client_of, device_of
from cloud.front.info import server_info
from cloud.front.label_sets import LabelSet, LabelSets, check_label_set
from cloud.front.limits import ServerOptions
from cloud.front.repeats import Repeats, spool_of
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

Context = grpc.aio.ServicerContext


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
        self._limiter = limiter or RateLimiter(None)
        self._by_token = tokens_are_checked
        self._label_sets = LabelSets(options.max_label_sets, options.label_set_bytes)
        self.repeats = Repeats(options.repeat_bytes, options.repeat_age_s)
        self._stopping = asyncio.Event()

    def stop_streams(self) -> None:
        """Streams answer the frames they have read, then end."""
        self._stopping.set()

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
            await FrameStream(self, context, deadline_of(context)).run(stopping)
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

    # ---------------------------------------------------------------- what streams need too

    def charge(self, context: Context, images: int = 1) -> None:
        """Raises `RateLimited`."""
        self._limiter.charge(client_of(context, self._by_token), images)

    def spool(self, context: Context) -> str:
        """Whose frames a call brings; see `cloud.front.repeats`."""
        return spool_of(context, self._by_token)

    def labels_of(self, request: pb.ClassifyRequest) -> LabelSet:
        """A request's own labels, or those that its handle names. Raises `LabelError` or `UnknownLabelSet`."""
        if not request.label_set:
            return check_label_set(request.labels, request.prompt_set, request.templates)
        if request.labels or request.templates or request.prompt_set:
            raise InvalidRequest("label_set stands in place of labels, prompt_set and templates: send one or the other")
        return self._label_sets.get(request.label_set)

    def look(
        self,
        source: dict[str, bytes],
        labels: LabelSet | None,
        top_k: int,
        clip: str,
        deadline: float | None,
        temperature: float | None = None,
    ) -> asyncio.Future[Answer]:
        """One image through the engine. Cancelling what is returned drops the work."""
        question = {"labels": labels.labels, "templates": labels.templates} if labels else {}
        future = self._engine.submit(
            **source, **question, top_k=top_k or 5, clip=clip, deadline=deadline, temperature=temperature
        )
        return asyncio.wrap_future(future)

    def report(
        self, context: Context, source: dict[str, bytes], labels: LabelSet | None, clip: str, answer: Answer
    ) -> None:
        """Tells the engine's observers of a final answer."""
        if not self._engine.observers:
            return
        models = self._engine.models
        name = models.name_of(clip)
        loaded = models.clip_of(name)
        self._engine.observers.answered(
            Seen(
                at=time.time(),
                device_id=device_of(context, self._by_token),
                packet=source.get("packet"),
                image_file=source.get("image_file"),
                labels=labels.labels if labels else (),
                answer=answer,
                clip=name,
                clip_id=loaded.heads.clip.id if loaded else name,
            )
        )

    def clip_name(self, wanted: str) -> str:
        """The name that a reply states: clients compare it with `GetServerInfo`."""
        return self._engine.models.name_of(wanted)

    def calibration(self, packet: Packet, clip: str) -> LayerCalibration | None:
        """What is known of answers from as many layers as `packet` holds; None without, and for a CLIP not loaded."""
        models = self._engine.models
        loaded = models.clip_of(models.name_of(clip))
        calibration = loaded.calibrations.get(packet.model_id) if loaded else None
        return calibration.of(len(packet.layers)) if calibration else None

    # ---------------------------------------------------------------- one request

    async def _classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        spool = self.spool(context)
        if not spool:
            self.charge(context)
            self._engine.check_room()  # saying no must cost less than looking at what was sent
        labels = self.labels_of(request)

        async def compute() -> pb.ClassifyResponse:
            if spool:  # a repeat costs its client nothing
                self.charge(context)
            source = source_of(request.image, self.options.max_image_file_bytes)
            answer = await self.look(source, labels, request.top_k, request.clip, deadline_of(context))
            self.report(context, source, labels, request.clip, answer)
            return classified(answer, labels.places, self.clip_name(request.clip), request.frame_id)

        return await self.repeats.answer(self.repeats.key(spool, request, labels), compute)

    async def _embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        self.charge(context)
        source = source_of(request.image, self.options.max_image_file_bytes)
        answer = await self.look(source, None, 0, request.clip, deadline_of(context))
        self.report(context, source, None, request.clip, answer)
        return pb.EmbedResponse(
            embedding=pb.Embedding(values=answer.embedding.tolist()),
            timing=timing_of(answer),
            model=self._model(request.clip, answer),
            frame_id=request.frame_id,
        )

    async def _encode_text(self, request: pb.EncodeTextRequest, context: Context) -> pb.EncodeTextResponse:
        self.charge(context)
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
        self.charge(context, len(images))
        looks = [asyncio.ensure_future(self._vector(image, request.clip, context)) for image in images]
        try:
            vectors = await self._text_vectors(texts, templates, request.clip, context)  # (T, D)
            seen = await asyncio.gather(*looks, return_exceptions=True)
        finally:
            for look in looks:
                look.cancel()
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
        self.charge(context)
        packet = Packet.from_bytes(request.packet)  # raises for one that is too large, before anything is read
        future = self._engine.submit_picture(request.packet, deadline=deadline_of(context))
        pixels = await asyncio.wrap_future(future)
        bundle = self._engine.intake.bundles.get(packet.model_id)
        model = pb.ModelInfo(bundle=bundle.name if bundle else "", layers=len(packet.layers))
        png = await asyncio.to_thread(_png, pixels)
        return pb.DecodeResponse(png=png, width=pixels.shape[1], height=pixels.shape[0], model=model)

    async def _register(self, request: pb.RegisterLabelsRequest, context: Context) -> pb.RegisterLabelsResponse:
        self.charge(context)
        labels = check_label_set(request.labels, request.prompt_set, request.templates)
        # Ready now: the first image need not wait for the text tower. Kept only when that went well.
        await self._text_vectors(labels.labels, labels.templates, request.clip, context)
        return pb.RegisterLabelsResponse(label_set=self._label_sets.add(labels), labels=len(labels.labels))

    async def _vector(self, image: pb.ImageInput, clip: str, context: Context) -> np.ndarray:
        source = source_of(image, self.options.max_image_file_bytes)
        return (await self.look(source, None, 0, clip, deadline_of(context))).embedding

    async def _text_vectors(self, texts, templates, clip: str, context: Context) -> np.ndarray:
        """Texts → unit vectors float32 (T, D)."""
        future = self._engine.submit_texts(texts, templates=templates, clip=clip, deadline=deadline_of(context))
        return await asyncio.wrap_future(future)

    def _model(self, clip: str, answer: Answer | None = None) -> pb.ModelInfo:
        if answer is None:
            return pb.ModelInfo(clip=self.clip_name(clip))
        return pb.ModelInfo(clip=self.clip_name(clip), bundle=answer.bundle or "", layers=answer.layers)


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
