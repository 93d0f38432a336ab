"""Views of photographs as training sees them: random crops, scales and losses of resolution."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from export.families.front import normalise
from export.photographs.collection import PACK_SIDE, Photographs


def crops(photographs: Photographs, size: int, batch: int, generator: torch.Generator, device: str) -> torch.Tensor:
    """`augmented` views of random photographs: normalised float (B, 3, size, size)."""
    images = photographs.take(photographs.draw(batch, generator).sort().values)
    return augmented(torch.from_numpy(images), size, batch, generator, device)


def augmented(
    images: torch.Tensor, size: int, batch: int, generator: torch.Generator, device: str, first: int = 0
) -> torch.Tensor:
    """Random flipped crops at random scale (a photograph's shorter side takes 160 to 224 pixels, the view's own).

    A quarter of them lose resolution first, as thumbnails have: decoders that never saw blur invent detail in it.
    images uint8 (b, S, S, 3) are those from `first` on of a batch of `batch`, which may be spread over processes: all
    draw the same numbers. → normalised float (b, 3, size, size)."""
    x = images.to(device).permute(0, 3, 1, 2).float()
    blurred = torch.zeros(batch, dtype=torch.bool)
    blurred[torch.randperm(batch, generator=generator)[: batch // 4]] = True
    blurred = blurred[first : first + len(x)].nonzero()[:, 0].to(device)
    side = int(torch.randint(28, 97, (1,), generator=generator))
    if len(blurred):
        small = F.interpolate(x[blurred], (side, side), mode="bicubic", antialias=True)
        x[blurred] = F.interpolate(small, x.shape[-2:], mode="bicubic", antialias=True).clamp(0, 255)
    scaled = max(size, PACK_SIDE + 16 * int(torch.randint(0, 5, (1,), generator=generator)))
    if scaled != x.shape[-1]:
        x = F.interpolate(x, (scaled, scaled), mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (int(torch.randint(0, scaled - size + 1, (1,), generator=generator)) for _ in range(2))
    x = x[..., top : top + size, left : left + size]
    if torch.rand(1, generator=generator) < 0.5:
        x = x.flip(-1)
    return normalise(x).contiguous(memory_format=torch.channels_last)


def psnr_db(mse: torch.Tensor) -> float:
    """Peak signal to noise of values in [0, 1]."""
    return -10 * math.log10(max(mse.item(), 1e-9))
