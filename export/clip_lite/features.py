"""Image side of the training set: pooled EfficientNet-Lite0 features of several augmented views, computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from export.photos import Pack, train_photos
from export.teachers import cache_root, lite0_input, load_lite0

SIZE = 224


def augment(images: torch.Tensor, view: int, generator: torch.Generator) -> torch.Tensor:
    """float (B, 3, 160, 160) → (B, 3, 224, 224). View 0 is the plain view; others crop, flip and lose resolution.

    Low-resolution views matter: users send thumbnails, and Lite0's features drift on blurred input unless the
    projection has seen them beside the answer of the sharp view.
    """
    if view == 0:
        return F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    size = images.shape[-1]
    scale = (1.0, 1.0, 0.8, 0.6, 0.45, 0.9, 0.7, 0.35)[view % 8]
    crop = int(size * scale)
    top, left = (int(torch.randint(0, size - crop + 1, (1,), generator=generator)) for _ in range(2))
    out = images[..., top : top + crop, left : left + crop]
    if view % 2:
        out = out.flip(-1)
    if view in (1, 5):  # a 32- or 64-pixel thumbnail, enlarged again as the canonical view would
        side = 32 if view == 1 else 64
        out = F.interpolate(out, (side, side), mode="bicubic", antialias=True)
    return F.interpolate(out, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)


@torch.inference_mode()
def pooled(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """float 0..255 (B, 3, 224, 224) → pooled features (B, 1280) float32."""
    with torch.autocast("cpu", torch.bfloat16):
        x = lite0_input(images).contiguous(memory_format=torch.channels_last)
        return model(x).float()


def view_features(pack: Pack, view: int, cache: Path) -> np.ndarray:
    """Pooled features (N, 1280) float16 of one augmented view of every image, cached on disk."""
    path = cache / f"lite0-view{view}.npy"
    if path.exists():
        return np.load(path)
    model = load_lite0(num_classes=0).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(view)
    out = []
    for start in tqdm(range(0, len(pack.rows), 50), desc=f"image features, view {view}"):
        batch = torch.from_numpy(np.array(pack.images[start : start + 50])).permute(0, 3, 1, 2).float()
        out.append(pooled(model, augment(batch, view, generator)).half().numpy())
    np.save(path, np.concatenate(out))
    return np.load(path)


def train_features(views: int) -> np.ndarray:
    """(views, N, 1280) float16 over photos-train."""
    pack = train_photos()
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    return np.stack([view_features(pack, view, cache) for view in range(views)])
