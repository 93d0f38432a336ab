"""What every codec family offers to the training loop, the exporter and the bundle writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

import synthesis
from export.rate import FactorisedRate


@dataclass(frozen=True)
class Family:
    """One codec family.

    name: of the family, its module and its bundles.
    channels: C of the latents.
    layers: channel spans [start, stop) of each packet layer.
    layer_bytes: target payload of each layer at 224x224.
    rates: (name, number of layers), low to high.
    synthesis_spec: the decoder, as `synthesis.build` takes it.
    build_analysis: channels → the untrained analysis net: normalised RGB (B, 3, H, W) → latents
        (B, C, H/stride, W/stride), whose rounding are the symbols.
    low, high: the range of symbols.
    context: of the entropy coder (`thinwire.contexts`).
    output: what the synthesis gives, `pixels` or the `embedding` of its teacher.
    stride: pixels per latent cell, in each direction.
    crop: pixels of the side of a training view.
    frozen_trunk: the analysis is `bottleneck(trunk(x))`, and the trunk is not trained.
    taught: modules of the synthesis that start with a teacher's weights.
    start_synthesis: (synthesis, analysis, the teacher's image tower) → sets better than random weights.
    rate_model: channels → what the decoder sees in training, and its cost in bits (see `export.rate`).
    start_views: number of training views over which the analysis measures its initial statistics.
    decoders: other synthesis nets for the same symbols, by name.
    decoder: the name of the one in use; None is the family's own.
    tie: the largest difference of a symbol whose value lies next to a rounding tie.
    """

    name: str
    channels: int
    layers: tuple[tuple[int, int], ...]
    layer_bytes: tuple[float, ...]
    rates: tuple[tuple[str, int], ...]
    synthesis_spec: dict[str, Any]
    build_analysis: Callable[[int], nn.Module]
    low: int = -15
    high: int = 15
    context: str = "checkerboard"
    output: str = "pixels"
    stride: int = 16
    crop: int = 128
    frozen_trunk: bool = False
    taught: tuple[str, ...] = ()
    start_synthesis: Callable[[nn.Module, nn.Module, nn.Module], None] | None = None
    rate_model: Callable[[int], nn.Module] = FactorisedRate
    start_views: int = 200
    decoders: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    decoder: str | None = None
    tie: int = 1

    def analysis(self) -> nn.Module:
        return self.build_analysis(self.channels)

    def synthesis(self) -> nn.Module:
        return synthesis.build(self.synthesis_spec)

    def answering_in(self, dim: int) -> Family:
        """This family (of output `embedding`) with vectors of `dim` values, as its teacher has them."""
        return replace(self, synthesis_spec={**self.synthesis_spec, "dim": dim})

    def with_decoder(self, name: str | None) -> Family:
        """This family with another of its decoders; None is its own. Raises `KeyError` for one that it has not."""
        return self if name is None else replace(self, synthesis_spec=self.decoders[name], decoder=name)
