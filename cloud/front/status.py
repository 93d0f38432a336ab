"""Typed errors → gRPC status with google.rpc.ErrorInfo (and RetryInfo), the one place where the mapping lives."""

from __future__ import annotations

from functools import lru_cache

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cloud.errors import QueueFull
from thinwire.contract import Reason
from thinwire.errors import ThinwireError

DOMAIN = "thinwire"
_MESSAGE_CHARS = 600  # status messages travel in HTTP/2 headers, of which gRPC takes 8 KiB

_CODES = {
    "BAD_PACKET": grpc.StatusCode.INVALID_ARGUMENT,
    "BAD_IMAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "BAD_LABELS": grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    # Not RESOURCE_EXHAUSTED: that means "again later" to retry policies, and an over-size input stays over-size.
    Reason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Reason.CLIP_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNKNOWN_LABEL_SET: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_FRAME: grpc.StatusCode.NOT_FOUND,
    Reason.CANNOT_DECODE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CLIP_UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SEARCH_OFF: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.STORE_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.INFERENCE_FAILED: grpc.StatusCode.INTERNAL,
}


def code_of(error: ThinwireError) -> grpc.StatusCode:
    """The gRPC status code that stands for `error`."""
    return _CODES.get(error.reason, grpc.StatusCode.INTERNAL)


def message_of(error: ThinwireError) -> str:
    """The error's sentence, cut to what a status may carry."""
    text = str(error)
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 1] + "…"


def retry_after_ms(error: ThinwireError) -> int:
    """Milliseconds after which another try makes sense; 0 where none was named."""
    return error.retry_after_ms if isinstance(error, QueueFull) else 0


def trailers_of(error: ThinwireError) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata: the status details, and the pushback that gRPC's own retries obey."""
    return _trailers(code_of(error), error.reason, message_of(error), retry_after_ms(error))


@lru_cache(maxsize=256)  # under overload the same few refusals are sent hundreds of times a second
def _trailers(code: grpc.StatusCode, reason: str, message: str, pause_ms: int) -> tuple[tuple[str, str | bytes], ...]:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    trailers: list[tuple[str, str | bytes]] = []
    if pause_ms:
        delay = duration_pb2.Duration(seconds=pause_ms // 1000, nanos=pause_ms % 1000 * 1_000_000)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        trailers.append(("grpc-retry-pushback-ms", str(pause_ms)))
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(trailers)
