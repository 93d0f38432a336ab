"""Image side of the training set: pooled features of several views, computed once.

Every view knows the sharp view of the same crop, whose softmax is its teacher: what a crop shows is not what the whole
photograph shows, and a thumbnail should be answered like the sharp crop that it was made from.
"""

from __future__ import annotations

import hashlib
import tempfile
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
from synthesis.onnx_file import export_onnx

SIZE = 224
PART = 2048  # images of a file: what an interruption costs at most
BATCH = 32


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


class Pooled:
    """float 0..255 (B, 3, S, S) → pooled features (B, F) float32, in ONNX Runtime."""

    def __init__(self, backbone: Backbone) -> None:
        import onnxruntime

        self.backbone = backbone
        example = {"images": torch.zeros(2, 3, backbone.size, backbone.size)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory(prefix="thinwire-features-") as folder:
            graph = Path(folder) / "features.onnx"
            export_onnx(Trunk(backbone.load(classifier=False)).eval(), example, "features", graph)
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        (features,) = self.session.run(["features"], {"images": self.backbone.inputs(images).numpy()})
        return torch.from_numpy(features)


class Trunk(nn.Module):
    """A network under the input name that its graph should have."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def view_features(photographs: Photographs, index: int, cache: Path, backbone: Backbone) -> np.ndarray:
    """Pooled features (N, F) float16 of one view of every image, cached on disk; an interrupted run goes on."""
    view = VIEWS[index]
    source = hashlib.sha256(photographs.identity.encode()).hexdigest()[:12]
    path = cache / f"{backbone.name}-crop{view.scale}-side{view.side}-{source}.npy"
    if path.exists():
        return np.load(path)
    ids = photographs.all_ids()
    parts = [path.with_name(f"{path.stem}-{start}.npy") for start in range(0, len(ids), PART)]
    model = None
    with tqdm(total=len(ids), desc=f"features of {backbone.name}, {view}", unit="image") as bar:
        for number, part in enumerate(parts):
            own = ids[number * PART : (number + 1) * PART]
            if not part.exists():
                model = model or Pooled(backbone)
                seed = view.teacher * len(parts) + number  # a thumbnail shows the place of its sharp view
                write_part(part, photographs, own, model, view, torch.Generator().manual_seed(seed))
            bar.update(len(own))
    np.save(path, np.concatenate([np.load(part) for part in parts]))
    for part in parts:
        part.unlink()
    return np.load(path)


def write_part(
    path: Path, photographs: Photographs, ids: np.ndarray, model: Pooled, view: View, generator: torch.Generator
) -> None:
    """The features of the images `ids`, (N, F) float16, by one rename."""
    out = []
    for start in range(0, len(ids), BATCH):
        photographs.ahead(ids[start : start + 3 * BATCH])
        batch = torch.from_numpy(photographs.take(ids[start : start + BATCH])).permute(0, 3, 1, 2).float()
        out.append(model(crop_views(batch, view, generator, model.backbone.size)).half().numpy())
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.concatenate(out))
    partial.rename(path)


def train_features(photographs: Photographs, views: int = len(VIEWS), backbone: Backbone = LITE0) -> np.ndarray:
    """(views, N, F) float16 over all photographs."""
    cache = cache_root() / "clip-lite"
    cache.mkdir(exist_ok=True)
    return np.stack([view_features(photographs, view, cache, backbone) for view in range(views)])
