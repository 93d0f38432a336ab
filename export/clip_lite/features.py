"""Image side of the training set: pooled EfficientNet-Lite0 features of several views, computed once.

Every view knows the sharp view of the same crop, whose softmax is its teacher: what a crop shows is not what the whole
photograph shows, and a thumbnail should be answered like the sharp crop that it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.photos import Pack, train_photos
from export.teachers import cache_root, lite0_input, load_lite0
from synthesis.folding import fold_batch_norm

SIZE = 224


@dataclass(frozen=True)
class View:
    """A crop of `scale` times the side, shrunk to `side` pixels first (None: sharp); `teacher` is its sharp view."""

    scale: float
    side: int | None
    teacher: int


# Thumbnails matter: users send small images, and Lite0's features drift on blurred input unless the projection has seen
# them beside the answer for the sharp crop.
VIEWS = (
    View(1.0, None, 0),
    View(1.0, 32, 0),
    View(0.75, None, 2),
    View(0.75, 32, 2),
    View(0.55, None, 4),
    View(0.55, 40, 4),
)


def crop_views(images: torch.Tensor, view: View, generator: torch.Generator) -> torch.Tensor:
    """float (B, 3, 160, 160) → (B, 3, 224, 224): one random crop of each image; equal generators give equal crops."""
    size = images.shape[-1]
    crop = round(size * view.scale)
    corners = torch.randint(0, size - crop + 1, (len(images), 2), generator=generator).tolist()
    out = torch.stack([im[:, y : y + crop, x : x + crop] for im, (y, x) in zip(images, corners, strict=True)])
    if view.side:
        out = F.interpolate(out, (view.side, view.side), mode="bicubic", antialias=True).clamp(0, 255)
    return F.interpolate(out, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)


class PooledLite0(nn.Module):
    """float 0..255 (B, 3, 224, 224) → pooled features (B, 1280) float32; folded, bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        net = fold_batch_norm(load_lite0(num_classes=0)).requires_grad_(False)
        self.net = net.to(torch.bfloat16, memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = lite0_input(images).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return self.net(x).float()


def view_features(pack: Pack, index: int, cache: Path) -> np.ndarray:
    """Pooled features (N, 1280) float16 of one view of every image, cached on disk."""
    view = VIEWS[index]
    path = cache / f"lite0-crop{view.scale}-side{view.side}.npy"
    if path.exists():
        return np.load(path)
    model = PooledLite0()
    generator = torch.Generator().manual_seed(view.teacher)
    out = []
    for start in tqdm(range(0, len(pack.rows), 50), desc=f"image features, {view}"):
        batch = torch.from_numpy(np.array(pack.images[start : start + 50])).permute(0, 3, 1, 2).float()
        out.append(model(crop_views(batch, view, generator)).half().numpy())
    np.save(path, np.concatenate(out))
    return np.load(path)


def train_features(views: int = len(VIEWS)) -> np.ndarray:
    """(views, N, 1280) float16 over photos-train."""
    pack = train_photos()
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    return np.stack([view_features(pack, view, cache) for view in range(views)])
