"""Image side of the training set: pooled features of several views, computed once.

Every view knows the sharp view of the same crop, whose softmax is its teacher: what a crop shows is not what the whole
photograph shows, and a thumbnail should be answered like the sharp crop that it was made from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.backbones import LITE0, Backbone
from export.photographs.collection import Photographs
from export.teachers import cache_root
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


def crop_views(images: torch.Tensor, view: View, generator: torch.Generator, size: int = SIZE) -> torch.Tensor:
    """float (B, 3, S, S) → (B, 3, size, size): one random crop of each image; equal generators give equal crops."""
    side = images.shape[-1]
    crop = round(side * view.scale)
    corners = torch.randint(0, side - crop + 1, (len(images), 2), generator=generator).tolist()
    out = torch.stack([im[:, y : y + crop, x : x + crop] for im, (y, x) in zip(images, corners, strict=True)])
    if view.side:
        out = F.interpolate(out, (view.side, view.side), mode="bicubic", antialias=True).clamp(0, 255)
    return F.interpolate(out, (size, size), mode="bicubic", antialias=True).clamp(0, 255)


class Pooled(nn.Module):
    """float 0..255 (B, 3, S, S) → pooled features (B, F) float32; folded, bfloat16."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        net = fold_batch_norm(backbone.load(classifier=False)).requires_grad_(False)
        self.net = net.to(torch.bfloat16, memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.backbone.inputs(images).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return self.net(x).float()


def view_features(photographs: Photographs, index: int, cache: Path, backbone: Backbone) -> np.ndarray:
    """Pooled features (N, F) float16 of one view of every image, cached on disk."""
    view = VIEWS[index]
    source = hashlib.sha256(photographs.identity.encode()).hexdigest()[:12]
    path = cache / f"{backbone.name}-crop{view.scale}-side{view.side}-{source}.npy"
    if path.exists():
        return np.load(path)
    model = Pooled(backbone)
    generator = torch.Generator().manual_seed(view.teacher)
    out = []
    ids = photographs.all_ids()
    for start in tqdm(range(0, len(ids), 50), desc=f"features of {backbone.name}, {view}"):
        batch = torch.from_numpy(photographs.take(ids[start : start + 50])).permute(0, 3, 1, 2).float()
        out.append(model(crop_views(batch, view, generator, backbone.size)).half().numpy())
    np.save(path, np.concatenate(out))
    return np.load(path)


def train_features(photographs: Photographs, views: int = len(VIEWS), backbone: Backbone = LITE0) -> np.ndarray:
    """(views, N, F) float16 over all photographs."""
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    return np.stack([view_features(photographs, view, cache, backbone) for view in range(views)])
