"""Checked requests in, protobuf replies out: the small conversions that every RPC shares."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc

from cloud.engine.items import Answer
from cloud.errors import InferenceFailed, InvalidRequest
from cloud.front.status import code_of, message_of, retry_after_ms, trailers_of
from thinwire import labels as label_rules
from thinwire.errors import PacketTooLarge, ThinwireError
from thinwire.packet import MAX_PACKET_BYTES
from thinwire.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)
T = TypeVar("T")


def source_of(image: pb.ImageInput, max_image_file_bytes: int) -> dict[str, bytes]:
    """{"packet": bytes} or {"image_file": bytes}. Raises `InvalidRequest` or `PacketTooLarge`."""
    kind = image.WhichOneof("source")
    if kind is None:
        raise InvalidRequest("the request holds no image: set image.packet or image.image_file")
    data = getattr(image, kind)
    limit = MAX_PACKET_BYTES if kind == "packet" else max_image_file_bytes
    if len(data) > limit:
        raise PacketTooLarge(f"{kind} has {len(data)} bytes, this server takes at most {limit}")
    return {kind: data}


def checked_texts(texts: Sequence[str], limit: int) -> list[str]:
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


def templates_of(prompt_set: str, templates: Sequence[str]) -> Sequence[str]:
    """Templates for free texts: none where the request names none."""
    return label_rules.resolve_templates(prompt_set, templates) if prompt_set or templates else ()


def timing_of(answer: Answer) -> pb.Timing:
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


def classified(
    answer: Answer,
    places: Sequence[int],
    clip: str,
    frame_id: int,
    *,
    with_notes: bool = False,
    notes: Sequence[str] = (),
) -> pb.ClassifyResponse:
    """places[i]: where label i stood in the list that the client sent. with_notes: the request carried its labels.
    notes: more of them."""
    response = pb.ClassifyResponse(
        timing=timing_of(answer),
        model=pb.ModelInfo(clip=clip, bundle=answer.bundle or "", layers=answer.layers),
        frame_id=frame_id,
        notes=(*(answer.notes if with_notes else ()), *notes),
    )
    for got in answer.predictions:
        response.predictions.add(
            label=got.label, index=places[got.index], probability=got.probability, similarity=got.similarity
        )
    for said in answer.opinions:
        response.opinions.add(
            bundle=said.bundle,
            layers=said.layers,
            weight=said.weight,
            label=said.label,
            probability=said.probability,
        )
    return response


def frame_error(caught: Exception) -> pb.FrameError:
    error = typed(caught)
    return pb.FrameError(
        code=code_of(error).value[0],
        reason=error.reason,
        message=message_of(error),
        retry_after_ms=retry_after_ms(error),
    )


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """The caller's deadline on this machine's monotonic clock; None where it set none."""
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic() + left_s


def typed(error: Exception) -> ThinwireError:
    """`error` itself where it is meant for clients; anything else is logged and becomes `InferenceFailed`."""
    if isinstance(error, ThinwireError):
        return error
    log.error("a request failed unexpectedly", exc_info=error)
    return InferenceFailed("an internal error; the server's log has more")


async def abort(context: grpc.aio.ServicerContext, error: ThinwireError) -> None:
    await context.abort(code_of(error), message_of(error), trailers_of(error))


async def or_abort(context: grpc.aio.ServicerContext, answer: Awaitable[T]) -> T:
    """The awaited answer; whatever it raises ends the call with its status and details."""
    try:
        return await answer
    except Exception as error:
        await abort(context, typed(error))
        raise
