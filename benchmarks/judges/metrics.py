"""What is measured of one image: distances between pixels, between CLIP's views of them, and the zero-shot answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from cloud.engine.text_heads import Head

TOP_K = 5
MS_SSIM_SMALLEST_SIDE = 161
"""Five scales of an 11-pixel window need more than (11 - 1) * 2**4 pixels."""


def psnr_db(view: np.ndarray, seen: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 views, dB; 100 for equal ones, so that means stay finite."""
    error = float(np.mean((view.astype(np.float32) - seen.astype(np.float32)) ** 2))
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def ms_ssim(views: np.ndarray, seen: np.ndarray) -> list[float | None]:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003) of uint8 (B, H, W, 3) pairs, 0 to 1.

    By pytorch-msssim with its defaults (five scales, 11-pixel Gaussian window). None for views too small for it.
    """
    import torch
    from pytorch_msssim import ms_ssim as of_batch

    if min(views.shape[1:3]) < MS_SSIM_SMALLEST_SIDE:
        return [None] * len(views)
    # Seen through other strides, not copied: its filters are 3 times faster on pixels whose colours lie together
    pair = [torch.from_numpy(each).permute(0, 3, 1, 2).float() for each in (views, seen)]
    with torch.inference_mode():
        return of_batch(*pair, data_range=255, size_average=False).tolist()


def pooled_cosine(seen: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Unit vectors float32 (B, D) twice → their cosines (B,)."""
    return (seen * original).sum(axis=1)


def patch_cosine(seen: torch.Tensor, original: torch.Tensor) -> list[float]:
    """Patch features (B, P, C) twice → mean over patches of the cosine between their vectors, (B,)."""
    from torch.nn import functional as F

    return F.cosine_similarity(seen.float(), original.float(), dim=2).mean(1).tolist()


@dataclass(frozen=True)
class ZeroShot:
    """One image's answer. top: label indices, best first; probability: of the first; similarities: cosines.

    `true_similarity - other_similarity` is the zero-shot margin of arXiv 2310.00927.
    """

    top: tuple[int, ...]
    probability: float
    true_similarity: float
    other_similarity: float


def zero_shot(head: Head, embeddings: np.ndarray, targets: list[int]) -> list[ZeroShot]:
    """Unit vectors (B, D) and true label indices → answers; of equal labels the first given wins, as on the server."""
    similarities = head.similarities(embeddings)  # (B, L)
    probabilities = head.probabilities(similarities)
    return [
        answer_of(np.argsort(-row, kind="stable"), row, float(chances.max()), target)
        for row, chances, target in zip(similarities, probabilities, targets)
    ]


def answer_of(order: np.ndarray, similarities: np.ndarray, probability: float, target: int) -> ZeroShot:
    """Label indices from best to worst, cosine of each label (L,), the winner's probability, the true index."""
    others = [similarities[index] for index in order[:2] if index != target]  # the best other is one of the best two
    return ZeroShot(
        tuple(int(index) for index in order[:TOP_K]),
        probability,
        float(similarities[target]),
        float(others[0]) if others else float("nan"),  # a data set of one label has no other
    )
