"""CLIPs whose image tower learned a codec's pictures: which packets they see, and how they are made.

An adapter (`synthesis.adapter`, written by `thinwire-export adapt`) changes the image tower alone: texts, label vectors
and their caches stay those of the CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.networks.served_bundles import bundle_for
from synthesis.adapter import Adapter, load_adapter
from thinwire.errors import AdapterError

if TYPE_CHECKING:
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


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
        bundle = bundle_for(adapter, "adapter", bundles, AdapterError)
        adapter.check_bundle(bundle, decoders)
        for rate, layers in adapter.rates.items():
            other = taken.setdefault((adapter.model_id, layers, adapter.clip.rpartition("#")[2]), adapter)
            if other is not adapter:
                raise AdapterError(
                    f"adapters {other.path} and {adapter.path} are both for {bundle.name} at {rate} and {adapter.clip}"
                )
    return adapters
