"""What single calls and streams share: limits of a client, label sets, repeats, and one image through the engine."""

from __future__ import annotations

import asyncio
import time

import grpc

from cloud.engine.calibration import LayerCalibration
from cloud.engine.engine import Engine
from cloud.engine.events import AnsweredFrame
from cloud.engine.items import Answer
from cloud.errors import InvalidRequest
from cloud.front.admission import RateLimiter, client_of, device_of
from cloud.front.label_sets import LabelSet, LabelSets, check_label_set
from cloud.front.limits import ServerOptions
from cloud.front.repeats import Repeats, spool_of
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

Context = grpc.aio.ServicerContext
Source = dict[str, "bytes | Packet"]
"""One entry: `packet`, as bytes or parsed, or `image_file`."""


class Answering:
    """Belongs to one service and its streams; for one event loop.

    engine: answers. options: limits of the front. limiter: of each client's images; None lets everything pass.
    tokens_are_checked: whether a bearer token tells who a client is.
    """

    def __init__(
        self,
        engine: Engine,
        options: ServerOptions,
        limiter: RateLimiter | None = None,
        tokens_are_checked: bool = False,
    ) -> None:
        self.options = options
        self.label_sets = LabelSets(options.max_label_sets, options.label_set_bytes)
        self.repeats = Repeats(options.repeat_bytes, options.repeat_age_s)
        self._engine = engine
        self._limiter = limiter or RateLimiter(None)
        self._by_token = tokens_are_checked

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
            raise InvalidRequest("label_set replaces labels, prompt_set and templates: send one or the other")
        return self.label_sets.get(request.label_set)

    def answer_image(
        self,
        source: Source,
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

    def report(self, context: Context, source: Source, labels: LabelSet | None, clip: str, answer: Answer) -> None:
        """Tells the engine's observers of a final answer."""
        if not self._engine.observers:
            return
        models, packet = self._engine.models, source.get("packet")
        name = models.name_of(clip)
        loaded = models.clip_of(name)
        self._engine.observers.answered(
            AnsweredFrame(
                at=time.time(),
                device_id=device_of(context, self._by_token),
                packet=packet.to_bytes() if isinstance(packet, Packet) else packet,
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

    def label_notes(self, labels: LabelSet, clip: str) -> tuple[str, ...]:
        """What the head of `labels`, where it is held, says about them."""
        models = self._engine.models
        loaded = models.clip_of(models.name_of(clip))
        head = loaded.heads.lookup(labels.labels, labels.templates) if loaded else None
        return head.notes if head else ()

    def calibration(self, packet: Packet, clip: str) -> LayerCalibration | None:
        """What is known of answers from as many layers as `packet` holds; None without, and for a CLIP not loaded."""
        models = self._engine.models
        loaded = models.clip_of(models.name_of(clip))
        calibration = loaded.calibrations.get(packet.model_id) if loaded else None
        return calibration.of(len(packet.layers)) if calibration else None
