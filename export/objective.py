"""The objective of every family: distortion + lambda * rate + mu * (0.7 (1 - patch cosine) + 0.3 (1 - pooled cosine)),
and the divergence of the answers (see `export.answers`).

The cosines are taken on the frozen image tower of clip-lite: the last feature map of its EfficientNet-Lite0 (and an
earlier one, whose gradient reaches fine detail) as patches, its image embedding as the pooled vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import thinwire
from export.clip_lite.image_head import EMBED_DIM, ImageHead
from export.depthwise import fast_backward
from export.teachers import TeacherMissing, load_lite0
from synthesis.folding import fold_batch_norm

POOLED_SHARE = 0.3
CLIP_LITE = Path(thinwire.__file__).parent / "models" / "clip-lite"


@dataclass
class TowerFeatures:
    """middle (B, 112, h/16, w/16), last (B, 1280, h/32, w/32), pooled (B, 384): clip-lite's embedding less the
    mean over photographs, for what all images share says little. middle is None where a family makes no pixels: it
    must answer, not bring back what lies halfway."""

    middle: torch.Tensor | None
    last: torch.Tensor
    pooled: torch.Tensor


class FrozenTower(nn.Module):
    """clip-lite's image tower, folded, bfloat16, no gradients to its weights; input normalised RGB (B, 3, H, W)."""

    def __init__(self, clip: Path = CLIP_LITE) -> None:
        super().__init__()
        weights = clip / "open_clip_model.safetensors"
        if not weights.exists():
            raise TeacherMissing(f"{weights} is missing: run `thinwire-export clip-lite`")
        net = fast_backward(fold_batch_norm(load_lite0(num_classes=0)).requires_grad_(False))
        self.net = net.to(torch.bfloat16, memory_format=torch.channels_last)
        prefix = "visual.head.mlp."
        state = {k.removeprefix(prefix): v for k, v in load_file(weights).items() if k.startswith(prefix)}
        self.head = ImageHead().requires_grad_(False)
        self.head.load_state_dict(state)
        self.register_buffer("mean", torch.zeros(EMBED_DIM))

    def forward(self, x: torch.Tensor) -> TowerFeatures:
        net = self.net
        x = net.bn1(net.conv_stem(x.to(torch.bfloat16)))
        middle = net.blocks[:5](x)
        last = net.bn2(net.conv_head(net.blocks[5:](middle)))
        pooled = F.normalize(self.head(last.float().mean((2, 3))), dim=1)
        return TowerFeatures(middle, last, pooled - self.mean)

    def embedding(self, features: TowerFeatures) -> torch.Tensor:
        """The unit vectors (B, 384) that clip-lite itself would give."""
        return features.pooled + self.mean

    @torch.no_grad()
    def centre(self, x: torch.Tensor) -> None:
        """Takes the mean embedding from photographs (B, 3, H, W)."""
        self.mean.copy_(self.embedding(self(x)).mean(0))

    def train(self, mode: bool = True) -> FrozenTower:
        return super().train(False)


def cosine_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over positions of the cosine between channel vectors of two maps (B, C, h, w) → (B,)."""
    a, b = a.float(), b.float()
    norms = (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-12).sqrt()  # F.cosine_similarity is 3 times slower
    return ((a * b).sum(1) / norms).mean((1, 2))


def feature_distance(got: TowerFeatures, wanted: TowerFeatures, pooled_share: float = POOLED_SHARE) -> torch.Tensor:
    """(1 - pooled_share) (1 - patch cosine) + pooled_share (1 - pooled cosine) → (B,)."""
    patch = cosine_map(got.last, wanted.last)
    if got.middle is not None:
        patch = 0.5 * (patch + cosine_map(got.middle, wanted.middle))
    pooled = F.cosine_similarity(got.pooled.float(), wanted.pooled.float(), dim=1)
    return (1 - pooled_share) * (1 - patch) + pooled_share * (1 - pooled)
