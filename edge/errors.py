"""What can go wrong on the device beyond bad images and bundles."""

from __future__ import annotations

from typing import ClassVar

from thinwire.errors import ThinwireError


class EncoderError(ThinwireError):
    """The ONNX encoder cannot run here, or does not keep the contract of its card."""

    reason: ClassVar[str] = "BAD_ENCODER"


class ConnectionOptionsError(ThinwireError):
    """The server's address, certificate or token is of no use; nothing was sent."""

    reason: ClassVar[str] = "BAD_CONNECTION_OPTIONS"


class ServerUnreachable(ThinwireError):
    """No server answers at the address."""

    reason: ClassVar[str] = "UNREACHABLE"


class ServerTimeout(ThinwireError):
    """The deadline passed before the answer came."""

    reason: ClassVar[str] = "DEADLINE"


class ClientClosed(ThinwireError):
    """The client was closed before, or while, this call was made."""

    reason: ClassVar[str] = "CLIENT_CLOSED"


class Refused(ThinwireError):
    """The server answered with an error. `server_reason` is its ErrorInfo reason (QUEUE_FULL, UNKNOWN_MODEL, ...)."""

    reason: ClassVar[str] = "REFUSED"

    def __init__(self, message: str, server_reason: str) -> None:
        super().__init__(message)
        self.server_reason = server_reason


class NothingToDo(ThinwireError):
    """The paths given hold no image, or the outputs asked for make no sense."""

    reason: ClassVar[str] = "NOTHING_TO_DO"


class FrameFailed(ThinwireError):
    """An unexpected exception raised by one image; other images are not affected."""

    reason: ClassVar[str] = "INTERNAL"


def described(error: BaseException) -> str:
    """An exception of any kind as one line: its own words where it has some, and its kind where it is not ours."""
    text = " ".join(str(error).split())
    if isinstance(error, ThinwireError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def reason_of(error: ThinwireError) -> str:
    """The upper-case word that names the trouble: the server's own where it refused, else the class's."""
    return error.server_reason if isinstance(error, Refused) else error.reason


class SpoolError(ThinwireError):
    """The spool cannot be used as asked."""

    reason: ClassVar[str] = "SPOOL"


class SpoolFull(SpoolError):
    """The spool holds as much as it may; the frame was not accepted."""

    reason: ClassVar[str] = "SPOOL_FULL"


class SpoolDiskFull(SpoolError):
    """The disk under the spool is full or failing; the frame was not accepted."""

    reason: ClassVar[str] = "DISK_FULL"


class SpoolReadOnly(SpoolError):
    """The disk under the spool takes no writes."""

    reason: ClassVar[str] = "READ_ONLY"


class SpoolBusy(SpoolError):
    """Another process writes the spool."""

    reason: ClassVar[str] = "SPOOL_BUSY"


class SpoolCorrupt(SpoolError):
    """The spool's file is damaged. Opening sets it aside and takes over what can be read."""

    reason: ClassVar[str] = "SPOOL_CORRUPT"


class OutputError(ThinwireError):
    """Results cannot be written where they should go; they stay in the spool."""

    reason: ClassVar[str] = "OUTPUT"


class SourceLost(ThinwireError):
    """A camera, stream or folder gives no more frames for now; it is opened again with growing pauses."""

    reason: ClassVar[str] = "SOURCE_LOST"


class SourceError(ThinwireError):
    """A source cannot be read at all, or needs a package that is not installed."""

    reason: ClassVar[str] = "BAD_SOURCE"


class UpdateRefused(ThinwireError):
    """A new bundle was not installed; the one in use is untouched."""

    reason: ClassVar[str] = "UPDATE_REFUSED"
