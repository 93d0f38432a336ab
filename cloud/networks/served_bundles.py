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
    model_id: bytes


def bundle_for(part: ForBundle, kind: str, bundles: Sequence[Bundle], error: type[ThinwireError]) -> Bundle:
    """The bundle that `part` is for. Raises `error`; `kind` is what the message calls the part."""
    for bundle in bundles:
        if bundle.model_id == part.model_id:
            return bundle
    names = ", ".join(f"{each.name} ({each.model_id.hex()})" for each in bundles) or "none"
    raise error(
        f"{kind} {part.path} is for bundle {part.bundle!r} ({part.model_id.hex()}), this server has "
        f"{names}: serve that bundle, or leave the {kind} out"
    )
