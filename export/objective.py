"""The objective of every family: distortion + lambda * rate + mu * (0.7 (1 - patch cosine) + 0.3 (1 - pooled cosine)).

The cosines are taken on a frozen image tower. For clip-lite that is EfficientNet-Lite0: its last feature map (and an
earlier one, whose gradient reaches fine detail) as patches, its class logits as the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from export.folding import fold_batch_norm
from export.teachers import load_lite0

POOLED_SHARE = 0.3


@dataclass
class TowerFeatures:
    """middle (B, 112, h/16, w/16), last (B, 1280, h/32, w/32), pooled (B, 1000): the centred class logits, from which
    clip-lite's projection starts; the plain pooled vector is positive everywhere and its cosine says little."""

    middle: torch.Tensor
    last: torch.Tensor
    pooled: torch.Tensor


class FrozenTower(nn.Module):
    """EfficientNet-Lite0, folded, bfloat16, without gradients to its weights; input normalised RGB (B, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        net = fold_batch_norm(load_lite0()).requires_grad_(False)
        self.net = net.to(torch.bfloat16, memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> TowerFeatures:
        net = self.net
        x = net.bn1(net.conv_stem(x.to(torch.bfloat16)))
        for index, stage in enumerate(net.blocks):
            x = stage(x)
            if index == 4:
                middle = x
        last = net.bn2(net.conv_head(x))
        logits = net.classifier(last.mean((2, 3))).float()
        return TowerFeatures(middle, last, logits - logits.mean(1, keepdim=True))

    def train(self, mode: bool = True) -> FrozenTower:
        return super().train(False)


def cosine_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over positions of the cosine between channel vectors of two maps (B, C, h, w) → (B,)."""
    return F.cosine_similarity(a.float(), b.float(), dim=1).mean((1, 2))


def feature_distance(got: TowerFeatures, wanted: TowerFeatures, pooled_share: float = POOLED_SHARE) -> torch.Tensor:
    """(1 - pooled_share) (1 - patch cosine) + pooled_share (1 - pooled cosine) → (B,)."""
    patch = 0.5 * (cosine_map(got.last, wanted.last) + cosine_map(got.middle, wanted.middle))
    pooled = F.cosine_similarity(got.pooled.float(), wanted.pooled.float(), dim=1)
    return (1 - pooled_share) * (1 - patch) + pooled_share * (1 - pooled)
