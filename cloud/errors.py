"""What the service refuses, as typed errors; `reason` travels to clients as `google.rpc.ErrorInfo.reason`."""

from __future__ import annotations

from typing import ClassVar

from thinwire.errors import ThinwireError


class ClipUnavailable(ThinwireError):
    """The CLIP model asked for cannot be loaded; the message names the fix."""

    reason: ClassVar[str] = "CLIP_UNAVAILABLE"


class ClipMismatch(ThinwireError):
    """A bundle decodes into the embedding space of another CLIP than the one that is loaded."""

    reason: ClassVar[str] = "CLIP_MISMATCH"


class DeviceUnavailable(ThinwireError):
    """A device was asked for by name and is not there; nothing falls back silently."""

    reason: ClassVar[str] = "DEVICE_UNAVAILABLE"


class InvalidRequest(ThinwireError):
    """The request itself is wrong (no image, two sources, too many texts, ...)."""

    reason: ClassVar[str] = "INVALID_REQUEST"


class QueueFull(ThinwireError):
    """The service holds as much work as it accepts; try again after `retry_after_ms`."""

    reason: ClassVar[str] = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlinePassed(ThinwireError):
    """The caller's deadline passed before the answer was ready; the work was dropped."""

    reason: ClassVar[str] = "DEADLINE"


class ShuttingDown(ThinwireError):
    """The service is stopping and accepts nothing new; another replica may."""

    reason: ClassVar[str] = "SHUTTING_DOWN"


class InferenceFailed(ThinwireError):
    """The networks failed on this one item (its neighbours in the batch were answered)."""

    reason: ClassVar[str] = "INFERENCE_FAILED"
