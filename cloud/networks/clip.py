"""CLIP models through open_clip: the shipped one, the hub's, or a local checkpoint. Never random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cloud.errors import ClipUnavailable, DeviceUnavailable
from synthesis.clip_source import OFFLINE_FIX, SHIPPED, image_size, open_clip_source
from synthesis.fingerprint import clip_fingerprint

if TYPE_CHECKING:
    import numpy as np
    import torch

TEXT_BATCH = 128  # prompts per text-tower call: large enough to fill a core, small enough to stop between calls


def pick_device(wanted: str) -> str:
    """`auto` | `cpu` | `cuda[:N]` → the torch device name to use.

    `auto` takes CUDA when it is there. A device asked for by name is that device or a `DeviceUnavailable`.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind == "cpu" and not index:
        return "cpu"
    if kind != "cuda" or (index and not index.isdigit()):
        raise DeviceUnavailable(f"unknown device {wanted!r}: use auto, cpu or cuda[:N]")
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            f"--device {wanted}: torch {torch.__version__} sees no CUDA device: check `nvidia-smi` "
            "and that torch is a CUDA build, or use --device cpu"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise DeviceUnavailable(f"--device {wanted}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return wanted


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded CLIP: two towers into one space of unit vectors.

    Guarantees: `id` is `name#fingerprint`, the fingerprint a SHA-256 over weights and preprocessing, so that equal ids
    give equal vectors (up to float rounding). Both `encode_*` methods return float32 unit vectors on the CPU or, for
    images, on `device`. Not thread-safe on one tower; the two towers may run in two threads.
    """

    name: str
    id: str
    model: torch.nn.Module
    tokenize: Callable[[list[str]], torch.Tensor]
    device: str
    image_height: int
    image_width: int
    resize_mode: str  # "shortest" | "squash" | "longest", as in open_clip's PreprocessCfg
    interpolation: str  # "bicubic" | "bilinear"
    fill: float  # grey level of the padding in "longest" mode, 0..1
    mean: torch.Tensor  # (1, 3, 1, 1) on device
    std: torch.Tensor  # (1, 3, 1, 1) on device
    embed_dim: int
    logit_scale: float  # softmax(logit_scale * cosine) are the zero-shot probabilities
    image_dtype: torch.dtype | None = None  # of the image tower; None: float32. See cloud.networks.precision
    channels_last: bool = True  # how the image tower wants its pictures in memory

    @property
    def device_name(self) -> str:
        """ "cpu", or "cuda:0 (NVIDIA H200)"."""
        if not self.device.startswith("cuda"):
            return self.device
        import torch

        index = int(self.device.partition(":")[2] or torch.cuda.current_device())
        return f"cuda:{index} ({torch.cuda.get_device_name(index)})"

    @property
    def device_memory(self) -> dict[str, Callable[[], int]]:
        """What tells the bytes of CUDA's memory by state; empty on a CPU."""
        if not self.device.startswith("cuda"):
            return {}
        import torch

        return {
            "allocated": lambda: torch.cuda.memory_allocated(self.device),
            "reserved": lambda: torch.cuda.memory_reserved(self.device),
            "free": lambda: torch.cuda.mem_get_info(self.device)[0],
        }

    @property
    def context_length(self) -> int | None:
        """Tokens of a text that the text tower reads; None where the tokenizer does not tell."""
        return getattr(self.tokenize, "context_length", None)

    def with_visual(self, visual: torch.nn.Module, **changes: object) -> Clip:
        """A twin with another image tower, and with `changes` of its fields. Both share the text tower."""
        model = copy.copy(self.model)
        model._modules = dict(self.model._modules)
        model.visual = visual
        return replace(self, model=model, **changes)

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (B, 3, H, W) in [0, 1] of any size → (B, 3, image_height, image_width) in [0, 1], antialiased."""
        from torch.nn import functional as F

        height, width = images.shape[-2:]
        if (height, width) == (self.image_height, self.image_width):
            return images
        scales = self.image_height / height, self.image_width / width
        if self.resize_mode == "squash":
            size = (self.image_height, self.image_width)
        else:
            scale = min(scales) if self.resize_mode == "longest" else max(scales)
            size = (round(height * scale), round(width * scale))
        images = F.interpolate(images.float(), size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = (size[0] - self.image_height) // 2, (size[1] - self.image_width) // 2
        if self.resize_mode == "longest":
            pads = (-left, self.image_width - size[1] + left, -top, self.image_height - size[0] + top)
            return F.pad(images, pads, value=self.fill)
        return images[..., top : top + self.image_height, left : left + self.image_width]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (B, 3, H, W) float in [0, 1] on `device` → unit vectors (B, embed_dim) float32 on `device`."""
        import torch
        from torch.nn import functional as F

        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = ((self.fit(images) - self.mean) / self.std).contiguous(memory_format=layout)
        if self.image_dtype is not None:
            x = x.to(self.image_dtype)
        with torch.inference_mode():
            return F.normalize(self.model.encode_image(x).float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → unit vectors (N, embed_dim) float32. The tokenizer cuts texts beyond the tower's context length."""
        import torch
        from torch.nn import functional as F

        parts = []
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = self.tokenize(list(texts[start : start + TEXT_BATCH])).to(self.device)
            with torch.inference_mode():
                parts.append(F.normalize(_encode_text(self.model, tokens).float(), dim=-1).cpu())
        return torch.cat(parts).numpy() if parts else torch.empty(0, self.embed_dim).numpy()


def _encode_text(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """`model.encode_text`, on the columns that hold tokens only where that gives the same vectors.

    Under a causal mask nothing behind the end-of-text token is seen, and prompts fill 5 to 12 of 77 columns: this is
    several times cheaper. Other text towers (custom, bidirectional) run as they are.
    """
    import open_clip
    import torch

    if type(model) is not open_clip.CLIP or model.attn_mask is None or model.text_pool_type != "argmax":
        return model.encode_text(tokens)
    end = tokens.argmax(dim=-1)  # (B,): end-of-text has the highest token id
    length = int(end.max()) + 1
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens[:, :length]).to(dtype) + model.positional_embedding[:length].to(dtype)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))  # (B, length, width)
    x = x[torch.arange(len(x), device=x.device), end]
    projection = model.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection


def load_clip(spec: str = SHIPPED, device: str = "cpu") -> Clip:
    """Loads the CLIP that `spec` names (see `open_clip_source`) onto `device` ("cpu" or "cuda[:N]").

    Raises `ClipUnavailable`, whose message names the fix, when anything is missing, damaged or out of reach.
    """
    import open_clip
    import torch

    source = open_clip_source(spec)
    name, model, preprocess = source.name, source.model, source.preprocess
    try:
        tokenizer = open_clip.get_tokenizer(source.tokenizer_of)
    except Exception as error:  # tokenizers of some models are fetched from the hub as well
        raise ClipUnavailable(f"the tokenizer of CLIP {name!r} cannot be loaded ({error}): {OFFLINE_FIX}") from error
    height, width = image_size(preprocess)
    fingerprint = clip_fingerprint(model, preprocess)
    model = model.eval().requires_grad_(False).to(device)
    model.visual.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        embed_dim = model.encode_text(tokenizer(["a"]).to(device)).shape[-1]
        logit_scale = float(model.logit_scale.exp())
    return Clip(
        name=name,
        id=f"{name}#{fingerprint}",
        model=model,
        tokenize=tokenizer,
        device=device,
        image_height=height,
        image_width=width,
        resize_mode=preprocess.get("resize_mode", "shortest"),
        interpolation="bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        fill=float(preprocess.get("fill_color", 0)) / 255,
        mean=torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1),
        std=torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1),
        embed_dim=embed_dim,
        logit_scale=logit_scale,
    )
