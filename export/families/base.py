"""What every codec family offers to the training loop, the exporter and the bundle writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import synthesis


@dataclass(frozen=True)
class Family:
    """One codec family.

    layers: channel spans [start, stop) of each packet layer; layer_bytes: target payload of each at 224x224;
    rates: (name, number of layers), low to high; low, high: the symbol range; build_analysis(channels) gives the
    untrained analysis net: normalised RGB (B, 3, H, W) → latents (B, C, H/16, W/16), whose rounding are the symbols.
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

    def analysis(self) -> nn.Module:
        return self.build_analysis(self.channels)

    def synthesis(self) -> nn.Module:
        return synthesis.build(self.synthesis_spec)
