"""Codec families: one module each, one interface.

A family names an analysis net (exported to ONNX for the edge), a synthesis net (from `synthesis/`, for the cloud), the
layers of its packets and the rate ladder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

import synthesis


@dataclass(frozen=True)
class Family:
    """What the training loop, the exporter and the bundle writer need to know of a codec family.

    layers: channel spans [start, stop) of each layer; layer_bytes: target payload of each at 224x224; low, high: the
    symbol range; rates: (name, number of layers), low to high.
    """

    name: str
    channels: int
    layers: tuple[tuple[int, int], ...]
    layer_bytes: tuple[float, ...]
    rates: tuple[tuple[str, int], ...]
    synthesis_spec: dict[str, Any]
    low: int = -15
    high: int = 15
    context: str = "checkerboard"
    analysis_args: dict[str, Any] = field(default_factory=dict)

    def analysis(self) -> nn.Module:
        """The untrained analysis net: normalised RGB (B, 3, H, W) → latents (B, C, H/16, W/16)."""
        from export.families.conv import ConvAnalysis

        return {"conv": ConvAnalysis}[self.name](self.channels, **self.analysis_args)

    def synthesis(self) -> nn.Module:
        return synthesis.build(self.synthesis_spec)


CONV = Family(
    name="conv",
    channels=60,
    layers=((0, 12), (12, 28), (28, 60)),
    layer_bytes=(240.0, 350.0, 900.0),
    rates=(("low", 1), ("mid", 2), ("high", 3)),
    synthesis_spec={"arch": "pixels", "channels": 60, "layers": 3, "widths": [160, 64, 32], "blocks": [3, 2, 1]},
)

FAMILIES = {family.name: family for family in (CONV,)}
