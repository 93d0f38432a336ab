"""CLIP's image tower in half precision, where it gives the same answers: a GPU's path, never taken unchecked.

A tower in bf16 or fp16 moves half the bytes and runs on tensor cores. Whether it still gives CLIP's vectors depends on
the model, so it is measured when the model is loaded, on the device that will run it, and fp32 stays where it does not.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from cloud.errors import DeviceUnavailable
from cloud.networks.parity import MIN_COSINE, Parity, compare

if TYPE_CHECKING:
    import torch

    from cloud.networks.clip import Clip

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHECK_IMAGES = 32


def parity_of(clip: Clip, other: Clip, count: int = CHECK_IMAGES) -> Parity:
    """How another tower for `clip` compares with its own on `count` of `check_images`."""
    images = check_images(clip, count).to(clip.device)
    return compare(clip.encode_images(images).cpu().numpy(), other.encode_images(images).cpu().numpy())


def check_images(clip: Clip, count: int = CHECK_IMAGES, seed: int = 0) -> torch.Tensor:
    """Smooth coloured pictures with edges and grain, always the same: float32 (count, 3, H, W) in [0, 1] on the CPU."""
    import torch
    from torch.nn import functional as F

    random = torch.Generator().manual_seed(seed)
    size = (clip.image_height, clip.image_width)
    coarse = F.interpolate(torch.rand(count, 3, 6, 6, generator=random), size, mode="bicubic")
    shapes = F.interpolate(torch.rand(count, 3, 9, 9, generator=random), size, mode="nearest")
    grain = torch.rand(count, 3, *size, generator=random)
    return (0.6 * coarse + 0.3 * shapes + 0.1 * grain).clamp(0, 1)


def in_precision(clip: Clip, wanted: str) -> Clip:
    """`clip` with its image tower in `wanted`: one of PRECISIONS.

    auto: bf16, else fp16, else fp32, on CUDA; fp32 on a CPU, where half precision is emulated and slower on most. A
    precision asked for by name that misses the parity bound (worst cosine 0.9995 against fp32 on 32 pictures) raises
    `DeviceUnavailable`; nothing is served that gives other vectors than it says.
    """
    if wanted not in PRECISIONS:
        raise DeviceUnavailable(f"precision {wanted!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if wanted == "fp32" or (wanted == "auto" and not clip.device.startswith("cuda")):
        return clip
    for name in ("bf16", "fp16") if wanted == "auto" else (wanted,):
        lowered, parity = lower(clip, name)
        if parity.good:
            log.info("CLIP %s: image tower in %s, worst cosine to fp32 %.5f", clip.name, name, parity.cosine_min)
            return lowered
        log.warning("CLIP %s in %s: worst cosine to fp32 is only %.5f", clip.name, name, parity.cosine_min)
    if wanted == "auto":
        return clip
    raise DeviceUnavailable(
        f"CLIP {clip.name!r} in {wanted} gives different vectors (worst cosine {parity.cosine_min:.5f}, at least "
        f"{MIN_COSINE} is wanted): use --precision fp32 or auto"
    )


def lower(clip: Clip, name: str) -> tuple[Clip, Parity]:
    """A copy of `clip` whose image tower runs in "bf16" or "fp16", and how it compares on `check_images`."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    lowered = clip.with_visual(copy.deepcopy(clip.model.visual).to(dtype), image_dtype=dtype)
    return lowered, parity_of(clip, lowered)
