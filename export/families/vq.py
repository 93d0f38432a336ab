"""Family `vq`: discrete tokens by finite scalar quantisation, with the trunk and decoder of `conv`.

FSQ (Mentzer et al. 2023, arXiv 2309.15505): each channel is bounded by a tanh and rounded to one of five levels; the
channels of a layer at one position are a token, and all products of levels are the codebook (5^4 = 625 words in the
first layer, 5^6 and 5^16 in the next ones). No codebook is learned, nothing collapses, no loss but the objective's own.

A token's index is coded by its coordinates, each with its table and contexts: lossless, and what a table over the whole
index (625 and more columns, 5^16 of them impossible) would save beyond that is the dependence inside one token.
There is no rate term: the codebooks' sizes are the rate (log2 5 bits a channel and position), chosen for the bytes of
`conv`, less what the tables save.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from export.families.conv import CONV, ConvAnalysis
from export.rate import FixedRate

LEVELS = 5
BOUND = (LEVELS - 1) / 2 * 1.001  # a little more than the outermost level, so that it is reached (the paper's epsilon)


class TokenAnalysis(ConvAnalysis):
    """Normalised RGB (B, 3, H, W) → latents (B, C, H/16, W/16) within the levels; symbols are their rounding."""

    def from_front(self, features: torch.Tensor) -> torch.Tensor:
        return BOUND * torch.tanh(super().from_front(features) / BOUND)

    @torch.no_grad()
    def initialise(self, images: torch.Tensor) -> None:
        """As `conv`, but every channel with a standard deviation of one level: all codewords are to be used."""
        super().initialise(images)
        spread = super().from_front(self.front(images)).std((0, 2, 3)).clamp_min(1e-6)
        self.skip.weight.div_(spread[:, None, None, None])
        self.skip.bias.div_(spread)


LAYERS = ((0, 4), (4, 10), (10, 26))

VQ = replace(
    CONV,
    name="vq",
    channels=26,
    layers=LAYERS,
    layer_bytes=(228.0, 341.0, 910.0),
    synthesis_spec=CONV.synthesis_spec | {"channels": 26},
    build_analysis=TokenAnalysis,
    rate_model=FixedRate,
    low=-(LEVELS // 2),
    high=LEVELS // 2,
)
