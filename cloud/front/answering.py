"""What single calls and streams share: limits of a client, label sets, repeats, and one image through the engine."""

from __future__ import annotations

import asyncio
import time

import grpc

from cloud.engine.engine import Engine
from cloud.engine.events import AnsweredFrame
from cloud.engine.fusion import Earlier
from cloud.engine.items import Answer
from cloud.errors import InvalidRequest
from cloud.front.admission import RateLimiter, client_of, device_of
from cloud.front.asking import Asking
from cloud.front.evidence import Evidence, Waiting
from cloud.front.label_sets import LabelSet, LabelSets, check_label_set
from cloud.front.limits import ServerOptions
from cloud.front.repeats import Repeats, spool_of
from thinwire.errors import PacketError
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
        self.evidence = Evidence(options.evidence_bytes, 2 * options.stream_window, options.evidence_age_s)
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
        earlier: Earlier | None = None,
    ) -> asyncio.Future[Answer]:
        """One image through the engine, fused with what an earlier packet gave. Cancelling drops the work."""
        question = {"labels": labels.labels, "templates": labels.templates} if labels else {}
        future = self._engine.submit(
            **source,
            **question,
            top_k=top_k or 5,
            clip=clip,
            deadline=deadline,
            temperature=temperature,
            earlier=earlier,
        )
        return asyncio.wrap_future(future)

    def report(
        self, context: Context, source: Source, labels: LabelSet | None, clip: str, answer: Answer, went: str = ""
    ) -> None:
        """Tells the engine's observers of a final answer. went: see `AnsweredFrame`."""
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
                went=went,
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

    def head_progress(self, labels: LabelSet, clip: str) -> tuple[int, int]:
        """(texts whose vectors are made, texts in all) of labels whose head is not there yet."""
        models = self._engine.models
        loaded = models.clip_of(models.name_of(clip))
        return loaded.heads.progress(labels.labels, labels.templates) if loaded else (0, 0)

    def clip_id(self, clip: str) -> str:
        """Name and hash of a CLIP's weights; "" for one that is not loaded."""
        loaded = self._engine.models.clip_of(self._engine.models.name_of(clip))
        return loaded.heads.clip.id if loaded else ""

    def asking(self, waiting: Waiting) -> Asking | None:
        """What more of a frame could be asked for, and what is known of that; None without a calibration, and for a
        CLIP that is not loaded."""
        models = self._engine.models
        loaded = models.clip_of(models.name_of(waiting.request.clip))
        if loaded is None:
            return None
        packet = waiting.packet
        if len(packet.layers) < waiting.progressive.max_layers:
            calibration = loaded.calibrations.get(packet.model_id)
            if calibration is not None and (table := calibration.of(len(packet.layers))) is not None:
                return Asking(table.temperature, len(packet.layers), table=table)
        fusion, level = loaded.fusions.get(packet.model_id), self._level(packet)
        if fusion is None or level is None:
            return None
        temperature = fusion.temperature(level, waiting.offers)
        return None if temperature is None else Asking(temperature, level, fusion=fusion, offers=waiting.offers)

    def earlier(self, held: Waiting, packet: Packet) -> Earlier | None:
        """How what is held of a frame is fused with a further packet; None where no calibration says how."""
        loaded = self._engine.models.clip_of(self._engine.models.name_of(held.request.clip))
        fusion, level = loaded.fusions.get(held.packet.model_id) if loaded else None, self._level(packet)
        if fusion is None or level is None or held.vector is None:
            return None
        pair = fusion.pair(held.layers, packet.model_id, level)
        return None if pair is None else Earlier(held.vector, held.bundle, held.layers, pair)

    def bundle_name(self, packet: Packet) -> str:
        bundle = self._engine.models.intake.bundles.get(packet.model_id)
        return bundle.name if bundle else packet.model_id.hex()

    def _level(self, packet: Packet) -> int | None:
        bundle = self._engine.models.intake.bundles.get(packet.model_id)
        try:
            return None if bundle is None else bundle.level(packet)
        except PacketError:  # the engine will say so
            return None
