"""TEST ONLY: a CLIP of a few thousand random weights in open_clip's local-dir format.

Its answers mean nothing. It exists so that tests take the same loading code as real models, in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path

MODEL_CFG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS_CFG = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_tiny_clip(folder: Path, seed: int = 0, **vision: object) -> Path:
    """Writes open_clip_config.json and open_clip_model.safetensors into `folder`; `vision` changes its vision_cfg."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(MODEL_CFG))
    config["vision_cfg"].update(vision)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS_CFG}))
    (folder / "TEST_ONLY").write_text("random weights, for tests\n")
    return folder
