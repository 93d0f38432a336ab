"""Decoders tuned for one CLIP: which packets they decode, and how they are made ready.

A variant (`synthesis.variant`, written by `thinwire-export tune`) stands in for the decoder of one bundle where one
CLIP answers; every other CLIP keeps the bundle's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.networks.served_bundles import bundles_for
from synthesis.variant import DecoderVariant, load_variant
from thinwire.errors import DecoderError

if TYPE_CHECKING:
    from thinwire.bundle import Bundle


def load_variants(folders: Sequence[str | Path], bundles: Sequence[Bundle]) -> list[DecoderVariant]:
    """Every variant in `folders`, checked against the bundles that are served.

    Raises `DecoderError` where a folder holds none, its bundle is not served, or two are for one bundle and CLIP.
    """
    variants = [load_variant(folder) for folder in folders]
    taken: dict[tuple[bytes, str], DecoderVariant] = {}
    for variant in variants:
        bundle, *_ = bundles_for(variant, "decoder", bundles, DecoderError)
        other = taken.setdefault((variant.picture_id, variant.clip.rpartition("#")[2]), variant)
        if other is not variant:
            raise DecoderError(
                f"decoders {other.path} and {variant.path} are both for {bundle.name} and {variant.clip}"
            )
    return variants
