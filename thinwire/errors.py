"""Typed errors of both ends. `reason` travels to clients as `google.rpc.ErrorInfo.reason`: part of the contract."""

from __future__ import annotations

from typing import ClassVar

from thinwire.contract import Reason


class ThinwireError(Exception):
    """Base of everything that thinwire raises on purpose; `str(error)` is one sentence that names the fix."""

    reason: ClassVar[str] = "INTERNAL"


class PacketError(ThinwireError):
    """The bytes are not a packet that this version accepts."""

    reason: ClassVar[str] = "BAD_PACKET"


class BadMagic(PacketError):
    """The bytes do not begin like a packet (`TW`); something else was sent."""


class UnknownVersion(PacketError):
    """The packet is of another format version than the one that this release reads."""


class TruncatedPacket(PacketError):
    """The packet ends before its own header says so."""


class ChecksumMismatch(PacketError):
    """The CRC-32C does not match: the packet was damaged on its way."""


class MalformedPacket(PacketError):
    """The header breaks a rule of WIRE.md (layer count, length encoding, trailing bytes, ...)."""


class BadPayload(PacketError):
    """A layer's entropy-coded bytes are not what the encoder writes for any symbols."""


class DamagedFrame(PacketError):
    """The bytes are not an AV1 frame of the size and settings that their packet stands for."""


class CoderMissing(ThinwireError):
    """The packet needs the compiled coder, and this end has none; nothing is wrong with the packet."""

    reason: ClassVar[str] = Reason.CANNOT_DECODE


class PacketTooLarge(PacketError):
    """A packet or layer is larger than the format allows; nothing of it was read."""

    reason: ClassVar[str] = Reason.TOO_LARGE


class UnknownModel(PacketError):
    """The packet was made by a model (bundle) that this end does not hold."""

    reason: ClassVar[str] = Reason.UNKNOWN_MODEL


class BundleError(ThinwireError):
    """A bundle folder cannot be used."""

    reason: ClassVar[str] = "BAD_BUNDLE"


class UnknownBundle(BundleError):
    """No bundle of that name ships with thinwire, and no such folder exists."""


class MissingFile(BundleError):
    """A file that the bundle's card names is not there."""


class AlteredFile(BundleError):
    """A file of the bundle does not have the hash that its card states."""


class BadCard(BundleError):
    """`card.json` is not readable, lacks a field, or contradicts the bundle's other files."""


class BadTables(BundleError):
    """Entropy-coding tables, or a model of symbols, break a rule (row sums, shapes, ranges)."""


class ClipUnavailable(ThinwireError):
    """The CLIP model asked for cannot be loaded; the message names the fix."""

    reason: ClassVar[str] = Reason.CLIP_UNAVAILABLE


class AdapterError(ThinwireError):
    """An adapter of a CLIP's image tower cannot be used: missing, altered, or for another CLIP or bundle."""

    reason: ClassVar[str] = "BAD_ADAPTER"


class DecoderError(ThinwireError):
    """A decoder variant cannot be used: missing, altered, or for another CLIP or bundle."""

    reason: ClassVar[str] = "BAD_DECODER"


class SymbolError(ThinwireError):
    """Symbols of the wrong shape or type were given to the entropy coder."""

    reason: ClassVar[str] = "BAD_SYMBOLS"


class RateError(ThinwireError):
    """A rate was asked for that the bundle does not offer."""

    reason: ClassVar[str] = "UNKNOWN_RATE"


class ImageError(ThinwireError):
    """The image is missing, empty, damaged, too large, or of no supported format."""

    reason: ClassVar[str] = "BAD_IMAGE"


class CropOutside(ImageError):
    """The part of the picture that was asked for lies outside it."""

    reason: ClassVar[str] = "CROP_OUTSIDE"


class LabelError(ThinwireError):
    """Labels or prompt templates are empty, too many, too long, or malformed."""

    reason: ClassVar[str] = "BAD_LABELS"


class ForeignEncoder(ThinwireError):
    """This end's image library writes what the other end could not read; nothing was sent."""

    reason: ClassVar[str] = "FOREIGN_ENCODER"
