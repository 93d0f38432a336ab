"""What the service refuses, as typed errors; `reason` travels to clients as `google.rpc.ErrorInfo.reason`."""

from __future__ import annotations

from typing import ClassVar

from thinwire.contract import Reason
from thinwire.errors import ClipUnavailable as ClipUnavailable
from thinwire.errors import ThinwireError


class ClipMismatch(ThinwireError):
    """A bundle decodes into the embedding space of another CLIP than the one that is loaded."""

    reason: ClassVar[str] = Reason.CLIP_MISMATCH


class DeviceUnavailable(ThinwireError):
    """A device was asked for by name and is not there; nothing falls back silently."""

    reason: ClassVar[str] = "DEVICE_UNAVAILABLE"


class InvalidRequest(ThinwireError):
    """The request itself is wrong (no image, two sources, too many texts, ...)."""

    reason: ClassVar[str] = Reason.INVALID_REQUEST


class QueueFull(ThinwireError):
    """The service holds as much work as it accepts; try again after `retry_after_ms`."""

    reason: ClassVar[str] = Reason.QUEUE_FULL

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlinePassed(ThinwireError):
    """The caller's deadline passed before the answer was ready; the work was dropped."""

    reason: ClassVar[str] = Reason.DEADLINE


class ShuttingDown(ThinwireError):
    """The service is stopping and accepts nothing new; another replica may."""

    reason: ClassVar[str] = Reason.SHUTTING_DOWN


class InferenceFailed(ThinwireError):
    """The networks failed on this one item (its neighbours in the batch were answered)."""

    reason: ClassVar[str] = Reason.INFERENCE_FAILED


class CannotDecode(ThinwireError):
    """These packets cannot become pictures here; the message says why."""

    reason: ClassVar[str] = Reason.CANNOT_DECODE


class UnknownClip(ThinwireError):
    """The request names a CLIP that this server was not given."""

    reason: ClassVar[str] = Reason.UNKNOWN_MODEL


class UnknownLabelSet(ThinwireError):
    """The handle is of no label set that this server holds; registering the labels again helps."""

    reason: ClassVar[str] = Reason.UNKNOWN_LABEL_SET


class UnknownFrame(ThinwireError):
    """Layers came for a frame that is not waiting for any; sending the whole packet helps."""

    reason: ClassVar[str] = Reason.UNKNOWN_FRAME


class Unauthenticated(ThinwireError):
    """No token, or none that is valid here. The message never repeats what was sent."""

    reason: ClassVar[str] = Reason.UNAUTHENTICATED


class PermissionDenied(ThinwireError):
    """The call is for operators; what it carried does not show one."""

    reason: ClassVar[str] = Reason.PERMISSION_DENIED


class SearchOff(ThinwireError):
    """This server keeps no frames, so there is nothing to search."""

    reason: ClassVar[str] = Reason.SEARCH_OFF


class RateLimited(QueueFull):
    """This client sends more than its share; try again after `retry_after_ms`."""

    reason: ClassVar[str] = Reason.RATE_LIMITED


class BadConfiguration(ThinwireError):
    """A setting, or a file that it names, cannot be used; the message names it and where it came from."""

    reason: ClassVar[str] = "BAD_CONFIGURATION"


class StoreFailed(ThinwireError):
    """Kept frames cannot be read or written; answers go on. The message says what is wrong with the disk."""

    reason: ClassVar[str] = Reason.STORE_FAILED


class StoreDamaged(StoreFailed):
    """The frame store's file is not a sound database."""
