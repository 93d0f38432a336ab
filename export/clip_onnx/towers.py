"""The two towers of a CLIP as the graphs have them, under open_clip's names of weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn
from torch.nn import functional as F

from synthesis.clip_source import image_size
from synthesis.onnx_file import write_graph


def image_tower(model: nn.Module, preprocess: dict[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """RGB float32 (B, 3, H, W) in [0, 1] → unit vectors (B, D) float32; the tower itself runs in `dtype`."""

    def forward(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
        x = ((images - self.pixel_mean) / self.pixel_std).to(dtype)
        return F.normalize(self.encode_image(x).float(), dim=-1)

    twin = _twin(model, {"visual"}, "ImageTower", forward)
    if dtype != torch.float32:
        twin.visual = copy.deepcopy(twin.visual).to(dtype)
    for name in ("mean", "std"):
        twin.register_buffer(f"pixel_{name}", torch.tensor(preprocess[name]).view(1, 3, 1, 1), persistent=False)
    return twin


def text_tower(model: nn.Module) -> nn.Module:
    """Tokens int64 (B, L) → unit vectors (B, D) float32; L is free where `reads_any_length`."""

    def whole(self: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.encode_text(tokens).float(), dim=-1)

    def causal(self: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask[:length, :length]))
        x = x[torch.arange(x.shape[0]), tokens.argmax(dim=-1)]  # end-of-text has the highest token id
        projection = self.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return F.normalize(x.float(), dim=-1)

    others = {name for name, _ in model.named_children()} - {"visual"}
    return _twin(model, others, "TextTower", causal if reads_any_length(model) else whole)


def reads_any_length(model: nn.Module) -> bool:
    """Whether nothing behind the end-of-text token is seen, so that padding may be left out: several times cheaper."""
    return type(model) is open_clip.CLIP and model.attn_mask is not None and model.text_pool_type == "argmax"


def write_image_tower(model: nn.Module, preprocess: dict[str, Any], path: Path, dtype: torch.dtype) -> None:
    height, width = image_size(preprocess)
    write_graph(image_tower(model, preprocess, dtype), {"images": torch.zeros(2, 3, height, width)}, "vectors", path)


def write_text_tower(model: nn.Module, context_length: int, path: Path) -> None:
    free, length = {}, context_length
    if reads_any_length(model):
        free = {"tokens": {1: torch.export.Dim("length", min=2, max=context_length)}}
        length = context_length - 1
    tokens = torch.ones(2, length, dtype=torch.int64)
    write_graph(text_tower(model), {"tokens": tokens}, "vectors", path, free)


def _twin(model: nn.Module, kept: set[str], name: str, forward: Any) -> nn.Module:
    """A copy of `model` with some of its parts and another `forward`; weights are shared."""
    twin = copy.copy(model)
    for group in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(twin, group, copy.copy(getattr(model, group)))
    twin._modules = {key: value for key, value in model._modules.items() if key in kept}
    if "visual" in kept:
        twin._parameters, twin._buffers = {}, {}
    twin.__class__ = type(name, (type(model),), {"forward": forward})
    return twin.eval()
