"""What both ends know of a picture whose constant bytes are not sent, and the errors of bare forms."""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.errors import ForeignEncoder


@dataclass(frozen=True)
class Form:
    """width, height: pixels; value: of the codec's dial (quality, distance); grey: one component instead of three."""

    width: int
    height: int
    value: float
    grey: bool = False


def refused(codec: str, form: Form, why: str = "other headers or tables than the receiver would put back") -> Exception:
    """The error for a file that its bare bytes could not give back."""
    return ForeignEncoder(f"the encoder's {codec} file of {form} has {why}: use the versions of requirements.lock")
