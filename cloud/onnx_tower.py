"""CLIP's image tower in ONNX Runtime, on a CPU: `--clip-backend onnx`, and `auto` for convolutional towers.

The same vectors sooner: on two cores clip-lite takes 4.4 ms an image in batches of 8 and 5.6 ms alone, in torch 7.2 and
13.4 ms. What is exported is the graph without weights, once for each architecture: clip-lite's ships, others are
written at their first use and kept in the cache. Every load compares both runtimes on the same pictures.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloud.clip import shipped_clip_path
from cloud.errors import DeviceUnavailable
from cloud.head import default_cache_dir
from cloud.onnx_graph import graph_digest, write_graph
from cloud.onnx_session import open_session
from cloud.precision import parity_of

if TYPE_CHECKING:
    from cloud.clip import Clip

log = logging.getLogger(__name__)

EXPORTERS = ("onnx", "onnxscript")  # with onnxruntime the extra `cloud-onnx`
MIN_COSINE = 0.99999
CHECK_IMAGES = 2


class OnnxTower(nn.Module):
    """A session behind the face of an image tower: float32 (B, 3, H, W), contiguous, on the CPU → (B, embed_dim)."""

    def __init__(self, graph: Path, tower: nn.Module) -> None:
        """graph: of `tower`, whose weights it runs with."""
        super().__init__()
        self._weights = {f"tower.{name}": value.contiguous().numpy() for name, value in tower.state_dict().items()}
        self._session = open_session(graph, torch.device("cpu"), "--clip-backend torch", self._weights)
        self.nbytes = sum(value.nbytes for value in self._weights.values())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (out,) = self._session.run(["vectors"], {"images": images.numpy()})
        return torch.from_numpy(out)


def in_backend(clip: Clip, wanted: str, cache_dir: Path | None = None) -> Clip:
    """`clip` with its image tower in `wanted`, "auto", "torch" or "onnx".

    auto: ONNX Runtime for float32 towers of convolutions on a CPU, where the packages are
    there and it gives torch's vectors; torch for the rest. Transformers cannot be had: see `write_graph`. cache_dir:
    None for `towers` beside the cache of text heads. `onnx` raises `DeviceUnavailable` where it cannot be.
    """
    if wanted == "torch":
        return clip
    try:
        if clip.device != "cpu" or clip.image_dtype is not None:
            raise DeviceUnavailable("it runs float32 towers on a CPU only")
        if importlib.util.find_spec("onnxruntime") is None:
            raise DeviceUnavailable("onnxruntime is not installed: pip install 'thinwire[cloud-onnx]'")
        if wanted == "auto" and not _is_convolutional(clip.model.visual):
            return clip
        return _in_onnx(clip, cache_dir or default_cache_dir().parent / "towers")
    except Exception as error:  # exporters and runtimes raise kinds of their own
        if wanted == "auto":
            log.info("CLIP %s: image tower in torch, not in ONNX Runtime: %s", clip.name, error)
            return clip
        raise DeviceUnavailable(f"--clip-backend onnx for CLIP {clip.name!r}: {error}") from error


def write_tower(tower: nn.Module, height: int, width: int, folder: Path) -> Path:
    """Writes the graph of an image tower into `folder` and returns its path. Needs onnx and onnxscript."""
    path = folder / graph_name(tower)
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(_Named(tower), {"images": torch.zeros(2, 3, height, width)}, "vectors", path)
    return path


def graph_name(tower: nn.Module) -> str:
    return f"image_tower-{graph_digest(tower)}.onnx"


def _in_onnx(clip: Clip, folder: Path) -> Clip:
    tower = clip.model.visual
    name = graph_name(tower)
    places = [at / name for at in (shipped_clip_path(), folder)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if missing := [name for name in EXPORTERS if importlib.util.find_spec(name) is None]:
            raise DeviceUnavailable(f"{', '.join(missing)} not installed: pip install 'thinwire[cloud-onnx]'")
        log.info("writing the image tower of %s for ONNX Runtime, once: %s", clip.name, places[-1])
        path = write_tower(tower, clip.image_height, clip.image_width, folder)
    quick = clip.with_visual(OnnxTower(path, tower), channels_last=False)
    parity = parity_of(clip, quick, CHECK_IMAGES)
    if parity.cosine_min < MIN_COSINE:
        raise DeviceUnavailable(
            f"it gives other vectors than torch (worst cosine {parity.cosine_min:.5f}): delete {path}"
        )
    return quick


class _Named(nn.Module):
    """Exported nets name their inputs by their arguments."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower(images)


def _is_convolutional(tower: nn.Module) -> bool:
    """More than a patch embedding's one."""
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1
