"""Which of the served bundles an adapter or a tuned decoder is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from thinwire.bundle import Bundle
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from pathlib import Path


class ForBundle(Protocol):
    """What names its bundle: an `Adapter`, a `DecoderVariant`."""

    path: Path
    bundle: str
    picture_id: bytes


def bundles_for(part: ForBundle, kind: str, bundles: Sequence[Bundle], error: type[ThinwireError]) -> list[Bundle]:
    """The bundles that `part` is for: one, or a still and the same still with packed frames.

    Raises `error` where there is none; `kind` is what the message calls the part.
    """
    if own := [bundle for bundle in bundles if bundle.picture_id == part.picture_id]:
        return own
    names = ", ".join(f"{each.name} ({each.picture_id.hex()})" for each in bundles) or "none"
    raise error(
        f"{kind} {part.path} is for bundle {part.bundle!r} ({part.picture_id.hex()}), this server has "
        f"{names}: serve that bundle, or leave the {kind} out"
    )
