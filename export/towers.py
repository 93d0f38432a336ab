"""Image towers of open_clip models, loaded as the cloud loads them: the same weights, the same name, the same hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from export.families.front import IMAGE_MEAN, IMAGE_STD
from synthesis.fingerprint import clip_fingerprint

SHIPPED_CLIP = Path(__file__).resolve().parents[1] / "thinwire" / "models" / "clip-lite"


@dataclass(frozen=True, eq=False)
class Tower:
    """An open_clip image tower. net: RGB as `front.normalise` leaves it (B, 3, height, width) → unit vectors (B, D)."""

    id: str  # NAME#fingerprint, as servers know it
    net: nn.Module
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class UnitTower(nn.Module):
    """`Tower.net`: from the scaling of all our encoders to the tower's own mean and std (of 0..1), then the tower."""

    def __init__(self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual = visual
        mean_, std_ = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
        self.register_buffer("scale", IMAGE_STD / 255 / std_)
        self.register_buffer("shift", (IMAGE_MEAN / 255 - mean_) / std_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.visual(x * self.scale + self.shift)
        return nn.functional.normalize(out[0] if isinstance(out, tuple) else out, dim=-1)


def load_tower(spec: str) -> Tower:
    """`clip-lite`, NAME:TAG, NAME:/path/to/checkpoint or an open_clip folder, as `thinwire-cloud serve --clip` takes.

    Raises ValueError for a spec of no such form, RuntimeError or OSError when the weights cannot be had.
    """
    import open_clip

    model, _ = _create(spec)
    folder = SHIPPED_CLIP if spec == "clip-lite" else Path(spec)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return Tower(
        id=f"{folder.resolve().name if folder.is_dir() else spec}#{clip_fingerprint(model, preprocess)}",
        net=UnitTower(model.visual, preprocess["mean"], preprocess["std"]).eval().requires_grad_(False),
        height=height,
        width=width,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )


@torch.inference_mode()
def text_vectors(spec: str, texts: list[str], batch: int = 128) -> torch.Tensor:
    """Texts → unit vectors (N, D) float32 of the text tower of `spec`, which is as for `load_tower`."""
    import open_clip

    model, arch = _create(spec)
    tokenize = open_clip.get_tokenizer(arch)
    parts = [model.eval().encode_text(tokenize(texts[i : i + batch])) for i in range(0, len(texts), batch)]
    return nn.functional.normalize(torch.cat(parts).float(), dim=-1)


def _create(spec: str) -> tuple[nn.Module, str]:
    """The model of `spec` on the CPU, and the name under which open_clip knows it. Raises as `load_tower` does."""
    import open_clip

    folder = SHIPPED_CLIP if spec == "clip-lite" else Path(spec)
    arch, _, pretrained = spec.partition(":")
    if folder.is_dir():
        arch, pretrained = f"local-dir:{folder.resolve()}", None
    elif not arch or not pretrained:
        raise ValueError(f"--clip {spec!r}: expected clip-lite, NAME:TAG, NAME:/path/to/checkpoint or a folder")
    model = open_clip.create_model(
        arch, pretrained, device="cpu", precision="fp32", require_pretrained=True, pretrained_text=False
    )
    return model, arch
