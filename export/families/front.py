"""The shared front of the light encoders: the first four stages of EfficientNet-Lite0 and a patch transform beside it.

Lite0's early stages already separate what an image shows (and cost 0.16 GMAC at 224x224); the patch branch carries the
colour and brightness that they throw away. Both give one vector per 16x16 patch.
"""

from __future__ import annotations

import torch
from torch import nn

from export.teachers import load_lite0
from synthesis.folding import fold_batch_norm

STRIDE = 16
FRONT_CHANNELS = 80
IMAGE_MEAN, IMAGE_STD = 127.0, 128.0  # Lite0's own input scaling


class Front(nn.Module):
    """Normalised RGB (B, 3, H, W) → (B, 80 + patch_channels, H/16, W/16). patch_channels 0: no patch branch."""

    def __init__(self, patch_channels: int = 24) -> None:
        super().__init__()
        lite0 = fold_batch_norm(load_lite0())
        self.stem, self.stem_norm = lite0.conv_stem, lite0.bn1
        self.stages = nn.Sequential(*[lite0.blocks[i] for i in range(4)])
        self.patch = nn.Conv2d(3, patch_channels, STRIDE, stride=STRIDE) if patch_channels else None
        self.channels = FRONT_CHANNELS + patch_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deep = self.stages(self.stem_norm(self.stem(x))) / 4
        return deep if self.patch is None else torch.cat([deep, self.patch(x)], dim=1)

    def initialise_patch(self, images: torch.Tensor) -> None:
        """Sets the patch branch to the leading principal axes (KLT) of 16x16 patches of normalised `images`."""
        patches = nn.functional.unfold(images, STRIDE, stride=STRIDE).transpose(1, 2).reshape(-1, 3 * STRIDE**2)
        mean = patches.mean(0)
        centred = patches - mean
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        order = torch.arange(len(variance) - 1, len(variance) - 1 - self.patch.out_channels, -1)
        weight = axes[:, order].T / STRIDE  # unit-gain for the mean brightness axis
        with torch.no_grad():
            self.patch.weight.copy_(weight.reshape_as(self.patch.weight))
            self.patch.bias.copy_(-(weight @ mean))


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 or float 0..255 RGB → the front's input."""
    return (images.float() - IMAGE_MEAN) / IMAGE_STD
