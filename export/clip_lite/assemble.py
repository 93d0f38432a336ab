"""Stages `assemble` and `evaluate`: one open_clip folder from all parts, and its zero-shot figures."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from export.clip_lite.backbones import LITE0, Backbone
from export.clip_lite.image_head import ImageHead
from export.clip_lite.text_tower import write_config

KEEP_FLOAT32 = ("running_mean", "running_var", "logit_scale")


def assemble(
    folder: Path,
    text_model: dict[str, torch.Tensor],
    head: ImageHead,
    logit_scale: torch.Tensor,
    backbone: Backbone = LITE0,
) -> Path:
    """Writes `open_clip_config.json` and `open_clip_model.safetensors` (fp16, batch statistics fp32) into `folder`."""
    write_config(folder, backbone)
    state = {name: value for name, value in text_model.items() if not name.startswith("visual.")}
    state["logit_scale"] = logit_scale.log()
    trunk = backbone.load(classifier=False).state_dict()
    state |= {f"visual.trunk.{name}": value for name, value in trunk.items() if "num_batches_tracked" not in name}
    for layer in ("fc1", "fc2"):
        for name, value in getattr(head, layer).state_dict().items():
            state[f"visual.head.mlp.{layer}.{name}"] = value
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    wanted = {name for name in model.state_dict() if "num_batches_tracked" not in name}
    if set(state) != wanted:
        raise RuntimeError(f"missing {sorted(wanted - set(state))}, unknown {sorted(set(state) - wanted)}")
    # The tracking counters are never used in eval mode but open_clip loads strictly.
    state |= {name: value for name, value in model.state_dict().items() if "num_batches_tracked" in name}
    packed = {}
    for name, value in state.items():
        narrow = value.is_floating_point() and not name.endswith(KEEP_FLOAT32)
        packed[name] = (value.half() if narrow else value).contiguous()
    save_file(packed, folder / "open_clip_model.safetensors")
    return folder
