"""The objective of every family: distortion + lambda * rate + mu * (0.7 (1 - patch cosine) + 0.3 (1 - pooled cosine)),
and the divergence of the answers (see `export.answers`).

The cosines are taken on frozen networks (see `export.teacher`): at their end and halfway, where the gradient reaches
fine detail, as patches; their image embedding is the pooled vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

POOLED_SHARE = 0.3


@dataclass
class TowerFeatures:
    """middle, last (B, C, ...): feature maps or tokens halfway and at the end, channels second; pooled (B, D): the
    embedding less the mean over photographs, for what all images share says little.

    middle is None where a family makes no pixels: it must answer, not bring back what lies halfway. A last map of other
    shape than the teacher's is not compared."""

    middle: torch.Tensor | None
    last: torch.Tensor | None
    pooled: torch.Tensor


def cosine_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over places of the cosine between channel vectors of two (B, C, ...) → (B,)."""
    a, b = a.float().flatten(2), b.float().flatten(2)
    norms = (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-12).sqrt()  # F.cosine_similarity is 3 times slower
    return ((a * b).sum(1) / norms).mean(1)


def feature_distance(got: TowerFeatures, wanted: TowerFeatures, pooled_share: float = POOLED_SHARE) -> torch.Tensor:
    """(1 - pooled_share) (1 - patch cosine) + pooled_share (1 - pooled cosine) → (B,)."""
    pooled = F.cosine_similarity(got.pooled.float(), wanted.pooled.float(), dim=1)
    if got.last is None or wanted.last is None or got.last.shape != wanted.last.shape:
        return 1 - pooled
    patch = cosine_map(got.last, wanted.last)
    if got.middle is not None:
        patch = 0.5 * (patch + cosine_map(got.middle, wanted.middle))
    return (1 - pooled_share) * (1 - patch) + pooled_share * (1 - pooled)
