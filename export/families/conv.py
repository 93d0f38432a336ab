"""Family `conv`: a light convolutional autoencoder whose channel groups are the layers of a packet."""

from __future__ import annotations

import torch
from torch import nn

from export.families.base import Family
from export.families.front import Front


class ConvAnalysis(nn.Module):
    """Normalised RGB (B, 3, H, W) → real-valued latents (B, C, H/16, W/16); symbols are their rounding.

    A 3x3 convolution mixes neighbouring patches; a linear skip keeps the principal axes of the front available.
    """

    def __init__(self, channels: int, hidden: int = 96) -> None:
        super().__init__()
        self.front = Front()
        self.mix = nn.Conv2d(self.front.channels, hidden, 3, padding=1)
        self.head = nn.Conv2d(hidden, channels, 1)
        self.skip = nn.Conv2d(self.front.channels, channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.from_front(self.front(x))

    def from_front(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(features))) + self.skip(features)

    def initialise(self, images: torch.Tensor) -> None:
        """Starts at principal axes: the first half of the channels of pixels, interleaved with those of the features.

        Latents start with a standard deviation that falls with the channel's variance, largest about 1.2 steps (twice
        that for pixels).
        """
        self.front.initialise_patch(images)
        with torch.no_grad():
            features = self.front(images).permute(0, 2, 3, 1).reshape(-1, self.front.channels)
            mean, std = features.mean(0), features.std(0) + 1e-6
            deep = (features - mean) / std
            deep[:, -self.front.patch.out_channels :] *= 2.0  # brightness and colour first
            _, values, axes = torch.linalg.svd(deep[:20000], full_matrices=False)
            axes = axes[: self.skip.out_channels]
            spread = values[: len(axes)] / values[0]
            weight = axes * (1.2 * spread / (deep @ axes.T).std(0))[:, None]
            weight[:, -self.front.patch.out_channels :] *= 2.0
            weight = weight / std
            self.skip.weight.zero_()
            self.skip.weight[: len(axes)] = weight[:, :, None, None]
            self.skip.bias.zero_()
            self.skip.bias[: len(axes)] = -(weight @ mean)


CONV = Family(
    name="conv",
    channels=60,
    layers=((0, 12), (12, 28), (28, 60)),
    layer_bytes=(240.0, 350.0, 900.0),
    rates=(("low", 1), ("mid", 2), ("high", 3)),
    synthesis_spec={"arch": "pixels", "channels": 60, "layers": 3, "widths": [160, 64, 32], "blocks": [3, 2, 1]},
    build_analysis=ConvAnalysis,
)
