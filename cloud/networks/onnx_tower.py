"""CLIP's image tower in ONNX Runtime, on a CPU: `--clip-backend onnx`, and `auto` for convolutional towers.

The same vectors sooner: on two cores clip-lite takes 4.4 ms an image in batches of 8 and 5.6 ms alone, in torch 7.2 and
13.4 ms. Every load compares both runtimes on the same pictures.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloud.errors import DeviceUnavailable
from cloud.networks.onnx_export import graph_of, tower_name
from cloud.networks.onnx_session import GraphNet
from cloud.networks.precision import parity_of

if TYPE_CHECKING:
    from cloud.networks.clip import Clip

log = logging.getLogger(__name__)

MIN_COSINE = 0.99999
CHECK_IMAGES = 2


class OnnxTower(GraphNet):
    """A session behind the face of an image tower: float32 (B, 3, H, W), contiguous, on the CPU → (B, embed_dim)."""

    def __init__(self, graph: Path, tower: Images) -> None:
        super().__init__(graph, tower, torch.device("cpu"), "--clip-backend torch")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (out,) = self.session.run(["vectors"], {"images": images.numpy()})
        return torch.from_numpy(out)


class Images(nn.Module):
    """An image tower as its graphs have it: exported nets name their inputs by their arguments."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower(images)


def in_backend(clip: Clip, wanted: str, cache_dir: Path | None = None) -> Clip:
    """`clip` with its image tower in `wanted`, "auto", "torch" or "onnx".

    auto: ONNX Runtime for float32 towers of convolutions on a CPU, where the packages are
    there and it gives torch's vectors; torch for the rest. cache_dir: as
    for `graph_of`. `onnx` raises `DeviceUnavailable` where it cannot be.
    """
    if wanted == "torch":
        return clip
    try:
        if clip.device != "cpu" or clip.image_dtype is not None:
            raise DeviceUnavailable("it runs float32 towers on a CPU only")
        if importlib.util.find_spec("onnxruntime") is None:
            raise DeviceUnavailable("onnxruntime is not installed: pip install 'thinwire[cloud-torch]'")
        if wanted == "auto" and not _is_convolutional(clip.model.visual):
            return clip
        return _in_onnx(clip, cache_dir)
    except Exception as error:  # exporters and runtimes raise kinds of their own
        if wanted == "auto":
            log.info("CLIP %s: image tower in torch, not in ONNX Runtime: %s", clip.name, error)
            return clip
        raise DeviceUnavailable(f"--clip-backend onnx for CLIP {clip.name!r}: {error}") from error


def tower_graph(clip: Clip, cache_dir: Path | None = None) -> Path:
    """The graph of `clip`'s image tower, as `graph_of` has it."""
    example = {"images": torch.zeros(2, 3, clip.image_height, clip.image_width)}
    tower = Images(clip.model.visual)
    return graph_of(tower_name(tower), tower, example, "vectors", cache_dir)


def _in_onnx(clip: Clip, cache_dir: Path | None) -> Clip:
    path = tower_graph(clip, cache_dir)
    quick = clip.with_visual(OnnxTower(path, Images(clip.model.visual)), channels_last=False)
    parity = parity_of(clip, quick, CHECK_IMAGES)
    if parity.cosine_min < MIN_COSINE:
        raise DeviceUnavailable(
            f"its vectors differ from torch's (worst cosine {parity.cosine_min:.5f}): delete {path}"
        )
    return quick


def _is_convolutional(tower: nn.Module) -> bool:
    """More than a patch embedding's one."""
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1
