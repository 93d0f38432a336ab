"""CLIP's image tower in ONNX Runtime, on a CPU: `--clip-backend onnx`, and `auto` for convolutional towers.

The same vectors sooner: clip-lite on two cores takes 4.4 ms an image in batches of 8 and 5.6 ms alone, in torch 7.2 and
13.4 ms. The tower is exported at its first use and kept in the cache under a hash of its weights. Every load compares
both runtimes on the same pictures.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloud.errors import DeviceUnavailable
from cloud.head import default_cache_dir
from cloud.onnx_session import open_session
from cloud.precision import check_images, compare

if TYPE_CHECKING:
    from cloud.clip import Clip

log = logging.getLogger(__name__)

PACKAGES = ("onnxruntime", "onnx", "onnxscript")  # the extra `cloud-onnx`
VERSION = 1  # of the files in the cache
MIN_COSINE = 0.99999
CHECK_IMAGES = 2


class OnnxTower(nn.Module):
    """A session behind the face of an image tower: float32 (B, 3, H, W), contiguous, on the CPU → (B, embed_dim)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path, torch.device("cpu"), "--clip-backend torch")
        self.nbytes = path.stat().st_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (out,) = self._session.run(["vectors"], {"images": images.numpy()})
        return torch.from_numpy(out)


def in_backend(clip: Clip, wanted: str, cache_dir: Path | None = None) -> Clip:
    """`clip` with its image tower in `wanted`, "auto", "torch" or "onnx".

    auto: ONNX Runtime for float32 towers of convolutions on a CPU, where the packages are
    installed and it gives torch's vectors; torch for the rest (vision transformers have not been measured). cache_dir:
    None for `towers` beside the cache of text heads. `onnx` raises `DeviceUnavailable` where it cannot be.
    """
    if wanted == "torch":
        return clip
    try:
        if clip.device != "cpu" or clip.image_dtype is not None:
            raise DeviceUnavailable("it runs float32 towers on a CPU only")
        if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
            raise DeviceUnavailable(f"{', '.join(missing)} not installed: pip install 'thinwire[cloud-onnx]'")
        if wanted == "auto" and not _is_convolutional(clip.model.visual):
            return clip
        return _in_onnx(clip, cache_dir or default_cache_dir().parent / "towers")
    except Exception as error:  # exporters and runtimes raise kinds of their own
        if wanted == "auto":
            log.info("CLIP %s: image tower in torch, not in ONNX Runtime: %s", clip.name, error)
            return clip
        raise DeviceUnavailable(f"--clip-backend onnx for CLIP {clip.name!r}: {error}") from error


def _in_onnx(clip: Clip, folder: Path) -> Clip:
    tower = clip.model.visual
    path = folder / f"{_content(tower)}.onnx"
    if not path.is_file():
        from synthesis.onnx_file import export_onnx

        log.info("writing the image tower of %s for ONNX Runtime, once: %s", clip.name, path)
        folder.mkdir(parents=True, exist_ok=True)
        example = torch.zeros(2, 3, clip.image_height, clip.image_width)
        export_onnx(_Named(tower), {"images": example}, "vectors", path)
    quick = clip.with_visual(OnnxTower(path), channels_last=False)
    images = check_images(clip, CHECK_IMAGES)
    parity = compare(clip.encode_images(images).numpy(), quick.encode_images(images).numpy())
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


def _content(tower: nn.Module) -> str:
    """Of the weights, the architecture and what writes the file."""
    digest = hashlib.sha256(f"{VERSION} {torch.__version__} {tower}".encode())
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()[:16]
