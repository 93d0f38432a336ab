"""Family `semantic`: symbols that become a CLIP embedding directly, with no pixels on the way.

A split of the teacher itself (features compressed at a bottleneck: Matsubara et al. 2022, arXiv 2203.08875). The edge
runs Lite0's first stages and one block of its fifth, and codes 2x2 positions as 64 channels; the cloud runs Lite0's
end. Both sides of the bottleneck start as a principal component transform and its inverse, the rest as the teacher's
own weights, so that training begins with a codec that works. Its packets mean something only to the CLIP that it was
distilled from; the card names it.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from export.clip_lite.image_head import EMBED_DIM
from export.families.base import Family
from export.families.front import Front
from export.teachers import load_lite0
from synthesis.folding import fold_batch_norm
from synthesis.semantic import InvertedResidual, SemanticSynthesis

WIDTH = 112  # of Lite0's fifth stage
POSITIONS = 7 * 7  # of the latents at 224x224
LAYERS = ((0, 8), (8, 14), (14, 24), (24, 40), (40, 64))
LAYER_BYTES = (45.0, 35.0, 45.0, 95.0, 150.0)


def gain_for(deviation: torch.Tensor, bits: float) -> float:
    """The factor at which rounded Gaussians of these standard deviations together cost `bits` (bisection)."""
    edges = torch.arange(-40, 41, dtype=torch.float64) + 0.5
    low, high = 1e-3, 1e3
    for _ in range(40):
        gain = (low * high) ** 0.5
        below = torch.special.ndtr(edges / (gain * deviation.double()[:, None]))
        spent = torch.special.entr(below.diff(dim=1)).sum().item() / math.log(2)
        low, high = (gain, high) if spent < bits else (low, gain)
    return gain


def copy_block(own: InvertedResidual, source: nn.Module) -> None:
    """Copies the weights of a folded block of timm's."""
    for name in ("conv_pw", "conv_dw", "conv_pwl"):
        getattr(own, name).load_state_dict(getattr(source, name).state_dict())
    own.conv_dw.weight.requires_grad_(False)  # few weights whose gradient takes a third of a step on a CPU


class SemanticAnalysis(nn.Module):
    """Normalised RGB (B, 3, H, W) → real-valued latents (B, C, H/32, W/32); symbols are their rounding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.front = Front(patch_channels=0)
        self.deep = InvertedResidual(80, WIDTH, 480, 5)
        copy_block(self.deep, fold_batch_norm(load_lite0()).blocks[4][0])
        self.front.requires_grad_(False)  # the trunk stays the teacher's, so that a training can keep what it gave
        self.deep.requires_grad_(False)
        self.linear = nn.Conv2d(WIDTH, channels, 2, stride=2)
        self.bend = InvertedResidual(WIDTH, channels, 224, 5, stride=2)
        nn.init.zeros_(self.bend.conv_pwl.weight)
        nn.init.zeros_(self.bend.conv_pwl.bias)
        self.mean = torch.zeros(4 * WIDTH)  # of the 2x2 patches that it was initialised with

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bottleneck(self.trunk(x))

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised RGB (B, 3, H, W) → the teacher's features (B, 112, H/16, W/16); nothing in it learns."""
        return self.deep(4 * self.front(x))

    def bottleneck(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features) + self.bend(features)

    @torch.no_grad()
    def initialise(self, images: torch.Tensor) -> None:
        """Starts the latents at the principal axes of 2x2 patches, so coarse that each layer spends its bytes.

        The standard deviation of a latent goes with the root of its component's, as a compromise between reverse
        water-filling and keeping what little the late components say.
        """
        features = self.trunk(images)
        patches = F.unfold(features, 2, stride=2).transpose(1, 2).reshape(-1, 4 * WIDTH)
        self.mean = patches.mean(0)
        _, values, axes = torch.linalg.svd(patches - self.mean, full_matrices=False)
        axes, values = axes[: self.linear.out_channels], values[: self.linear.out_channels]
        spread = values / len(patches) ** 0.5
        deviation = (spread / spread[0]).sqrt()
        for (start, stop), size in zip(LAYERS, LAYER_BYTES, strict=True):
            deviation[start:stop] *= gain_for(deviation[start:stop], 8 * size / POSITIONS)
        weight = axes * (deviation / spread)[:, None]
        self.linear.weight.copy_(weight.reshape_as(self.linear.weight))
        self.linear.bias.copy_(-(weight @ self.mean))


@torch.no_grad()
def start_at_teacher(net: SemanticSynthesis, analysis: SemanticAnalysis, visual: nn.Module) -> None:
    """The inverse of the analysis' linear start, then the end of Lite0 and, where the CLIP's tower `visual` stands on
    Lite0 too, its image head."""
    weight = analysis.linear.weight.flatten(1)  # (C, 448), orthogonal rows
    net.stem.weight.copy_((weight / weight.square().sum(1, keepdim=True)).T[:, :, None, None])
    net.stem.bias.copy_(analysis.mean)
    lite0 = fold_batch_norm(load_lite0(num_classes=0))
    for own, source in zip(net.middle, lite0.blocks[4][1:], strict=True):
        copy_block(own, source)
    for own, source in zip(net.deep, [*lite0.blocks[5][:3], lite0.blocks[6][0]], strict=True):
        copy_block(own, source)
    net.conv_head.load_state_dict(lite0.conv_head.state_dict())
    if stands_on_lite0(visual) and visual.head.mlp.fc2.weight.shape == net.fc2.weight.shape:
        net.fc1.load_state_dict(visual.head.mlp.fc1.state_dict())
        net.fc2.load_state_dict(visual.head.mlp.fc2.state_dict())


def stands_on_lite0(visual: nn.Module) -> bool:
    """Whether an open_clip image tower is Lite0, weights included (up to half precision), and a projection."""
    stem = getattr(getattr(visual, "trunk", None), "conv_stem", None)
    has_head = hasattr(getattr(visual, "head", None), "mlp")
    own = load_lite0().conv_stem.weight
    return (
        has_head and stem is not None and stem.weight.shape == own.shape and torch.allclose(stem.weight, own, atol=1e-2)
    )


SEMANTIC = Family(
    name="semantic",
    channels=64,
    layers=LAYERS,
    layer_bytes=LAYER_BYTES,
    rates=(("tiny", 1), ("low", 2), ("mid", 3), ("high", 4), ("max", 5)),
    synthesis_spec={"arch": "semantic", "channels": 64, "layers": 5, "dim": EMBED_DIM},
    build_analysis=SemanticAnalysis,
    start_synthesis=start_at_teacher,
    output="embedding",
    stride=32,
    crop=192,
    frozen_trunk=True,
    taught=("middle", "deep", "conv_head", "fc1", "fc2"),
)
