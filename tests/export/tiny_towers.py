"""Real architectures of open_clip and timm, made tiny, with RANDOM weights: they mean nothing, everything must run."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def timm_tower(name: str, size: int, pool: str, proj: str) -> dict:
    return {
        "image_size": size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
    }


VISION = {
    "RN50": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "ViT": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 16},
    "ConvNeXt": timm_tower("test_convnext", 160, "avg", "linear"),
    "SigLIP": timm_tower("test_vit3", 160, "map", "none"),
    "CoCa": {
        "image_size": 64,
        "layers": 4,
        "width": 64,
        "patch_size": 16,
        "attentional_pool": True,
        "output_tokens": True,
    },
    "timm": timm_tower("test_efficientnet", 160, "avg", "mlp"),
}
NAMES = tuple(VISION)


def write_tiny(name: str, folder: Path) -> Path:
    """An open_clip folder of the architecture `name` under a fixed seed."""
    torch.manual_seed(0)
    dim = 96 if name == "SigLIP" else 32  # test_vit3 is 96 wide and has no projection
    config = {"embed_dim": dim, "vision_cfg": VISION[name], "text_cfg": {**TEXT, "width": dim}}
    if name == "CoCa":
        config["text_cfg"] = {**TEXT, "embed_cls": True, "output_tokens": True, "context_length": 15}
        config["multimodal_cfg"] = {**TEXT, "context_length": 16}
        model, custom = open_clip.CoCa(**config), {"custom_text": True}
    else:
        model, custom = open_clip.CLIP(**config), {}
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    written = {"model_cfg": {**config, **custom}, "preprocess_cfg": {**preprocess, "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
