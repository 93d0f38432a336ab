"""CLIPs whose image tower learned a codec's pictures: which packets they see, and how they are made.

An adapter (`synthesis.adapter`, written by `thinwire-export adapt`) changes the image tower alone: texts, label vectors
and their caches stay those of the CLIP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.networks.served_bundles import bundles_for
from synthesis.adapter import NONE, SERVED, Adapter, load_adapter
from synthesis.clip_artefact import SHIPPED
from thinwire.errors import AdapterError

if TYPE_CHECKING:
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)


def served_adapters(
    asked: Sequence[str | Path] | None,
    clips: Sequence[str],
    bundles: Sequence[Bundle],
    decoders: Sequence[DecoderVariant] = (),
    precision: str = "auto",
) -> list[Adapter]:
    """What `--adapter` asks for; `none` is none. Where it is not given (None), those of `SERVED` that fit what is
    served: clip-lite by name, the bundle with its own decoder, float weights. Raises as `load_adapters`."""
    if asked is not None:
        return load_adapters([each for each in asked if str(each) != NONE], bundles, decoders)
    if SHIPPED not in clips or precision == "int8":
        return []
    return [adapter for adapter in map(load_adapter, SERVED) if _fits(adapter, bundles, decoders)]


def _fits(adapter: Adapter, bundles: Sequence[Bundle], decoders: Sequence[DecoderVariant]) -> bool:
    own = [each for each in bundles if each.picture_id == adapter.picture_id]
    try:
        for bundle in own:
            adapter.check_bundle(bundle, decoders)
    except AdapterError as error:  # pictures of another decoder
        log.warning("served without the adapter that ships: %s", error)
        return False
    return bool(own)


def load_adapters(
    folders: Sequence[str | Path], bundles: Sequence[Bundle], decoders: Sequence[DecoderVariant] = ()
) -> list[Adapter]:
    """Every adapter in `folders`, checked against the bundles that are served and the decoders tuned for them.

    Raises `AdapterError` where a folder holds none, its bundle is not served or has another decoder, or two adapters
    are for one bundle, rate and CLIP.
    """
    adapters = [load_adapter(folder) for folder in folders]
    taken: dict[tuple[bytes, int, str], Adapter] = {}
    for adapter in adapters:
        own = bundles_for(adapter, "adapter", bundles, AdapterError)
        for bundle in own:
            adapter.check_bundle(bundle, decoders)
        for rate, layers in adapter.rates.items():
            other = taken.setdefault((adapter.picture_id, layers, adapter.clip.rpartition("#")[2]), adapter)
            if other is not adapter:
                raise AdapterError(
                    f"adapters {other.path} and {adapter.path} are both for {own[0].name} at {rate} and {adapter.clip}"
                )
    return adapters
