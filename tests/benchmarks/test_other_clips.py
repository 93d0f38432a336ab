"""The code path for hub models: real architectures of open_clip, made tiny, with RANDOM weights. They mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")

import open_clip

from benchmarks.judges.judge import Judge
from tests.tiny_bundle import synthetic_views

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
ARCHITECTURES = {
    "RN50": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "ViT": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}, "text_cfg": TEXT},
    "SigLIP": {
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,  # its own: open_clip leaves the size to timm
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "none",
        },
        "text_cfg": {**TEXT, "width": 64, "heads": 2, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "CoCa": {
        "vision_cfg": {
            "image_size": 64,
            "layers": 2,
            "width": 64,
            "patch_size": 16,
            "attentional_pool": True,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True, "context_length": 15},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}
EMBED_DIM = {"SigLIP": 64}
VIEW_SIZE = {"SigLIP": 160}
PREPROCESS = {
    "SigLIP": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}


def write_random(name: str, folder: Path) -> Path:
    """A folder that `load_clip` takes: open_clip's architecture, random weights under a fixed seed."""
    import torch
    from safetensors.torch import save_file

    model_cfg = {"embed_dim": EMBED_DIM.get(name, 32), **ARCHITECTURES[name]}
    torch.manual_seed(0)
    custom = model_cfg.pop("custom_text", False)
    if name == "CoCa":
        model = open_clip.CoCa(**model_cfg)
    else:
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**model_cfg)
    folder.mkdir()
    config = {"model_cfg": {**model_cfg, **({"custom_text": True} if custom else {})}}
    config["preprocess_cfg"] = PREPROCESS.get(
        name,
        {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"},
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_judge_of_each_architecture(name, tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    judge = Judge(str(write_random(name, tmp_path / f"tiny-random-{name}")), "cpu")
    size = VIEW_SIZE.get(name, 64)
    assert judge.view_size == (size, size)
    assert judge.clip.resize_mode == PREPROCESS.get(name, {}).get("resize_mode", "shortest")
    views = list(synthetic_views(5, size, seed=4))
    seen = judge.embed(views)
    assert seen.embeddings.shape == (5, judge.clip.embed_dim)
    assert np.linalg.norm(seen.embeddings, axis=1) == pytest.approx(1, abs=1e-4)
    alone = np.concatenate([judge.embed([view]).embeddings for view in views])
    assert np.abs(seen.embeddings - alone).max() < 1e-4  # what else is in a batch changes no answer
    if seen.patches is not None:
        assert seen.patches.shape[0] == 5
    head = judge.head(("cat", "dog", "ship"), ("a photo of a {}.", "art of the {}."))
    assert head.classes.shape == (3, judge.clip.embed_dim)
    chances = head.probabilities(head.similarities(seen.embeddings))
    assert chances.sum(1) == pytest.approx(1, abs=1e-5)
    assert [each[0].label for each in judge.answers(views, ("cat", "dog", "ship"), "1", 1)]


def test_architectures_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    ids = {Judge(str(write_random(name, tmp_path / name)), "cpu").clip.id for name in ("RN50", "ViT")}
    assert len(ids) == 2
