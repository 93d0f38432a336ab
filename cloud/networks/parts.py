"""What a server loads beside its CLIPs: bundles, tuned decoders, adapters. The one place that decides it.

`thinwire-cloud serve`, `check-config` and the replicas of Ray all ask here, so that they answer alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.networks.adapted import served_adapters
from cloud.networks.tuned import load_variants
from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.errors import BundleError

if TYPE_CHECKING:
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant


@dataclass(frozen=True)
class NamedParts:
    """What an operator names. Each may be None: a server then takes what ships.

    bundles: names of shipped bundles or folders; None: all that ship.
    decoders: folders that `thinwire-export tune` wrote; None: none.
    adapters: names of shipped adapters, folders that `thinwire-export adapt` wrote, or `none`; None: those that ship
        and fit what is served (`served_adapters`).
    """

    bundles: Sequence[str | Path] | None = None
    decoders: Sequence[str | Path] | None = None
    adapters: Sequence[str | Path] | None = None


@dataclass(frozen=True)
class Parts:
    """Loaded and checked against each other."""

    bundles: list[Bundle]
    decoders: list[DecoderVariant]
    adapters: list[Adapter]

    def lines(self) -> list[str]:
        """One line for each part, for `check-config`."""
        told = [f"bundle {each.name} ({each.model_id.hex()}): {each.path}" for each in self.bundles]
        told += [f"decoder of {each.bundle} for {each.clip}, into {each.into}: {each.path}" for each in self.decoders]
        return told + [
            f"adapter of {each.clip} for {each.bundle} at {', '.join(each.rates)}: {each.path}"
            for each in self.adapters
        ]


def load_parts(named: NamedParts, clips: Sequence[str], precision: str = "auto") -> Parts:
    """The parts that a server of `clips`, whose image towers run in `precision`, loads.

    Raises `BundleError`, `DecoderError` or `AdapterError` for a part that is broken, fits no bundle that is served, or
    takes the place of another.
    """
    bundles = _load_bundles(shipped_bundles().values() if named.bundles is None else named.bundles)
    decoders = load_variants(named.decoders or (), bundles)
    return Parts(bundles, decoders, served_adapters(named.adapters, clips, bundles, decoders, precision))


def _load_bundles(sources: Sequence[str | Path]) -> list[Bundle]:
    loaded: dict[bytes, Bundle] = {}
    for bundle in map(load_bundle, sources):
        if bundle.model_id in loaded:
            other = loaded[bundle.model_id].path
            raise BundleError(f"{bundle.path} and {other} have one model id {bundle.model_id.hex()}: serve one of them")
        loaded[bundle.model_id] = bundle
    return list(loaded.values())
