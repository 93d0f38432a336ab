"""Writes what the shipped CLIP says of one photograph and two texts, for `tests/export/test_shipped_clip.py`.

    python scripts/golden_clip.py

To be run when clip-lite's weights change on purpose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F

from cloud.networks.clip import load_clip
from tests.export.photographs import photograph

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "clip-lite.json"
PHOTOGRAPH, TEXTS = "chelsea.png", ["a photo of a cat.", "two dogs run along a beach"]
DIGITS = 5


def answers() -> dict[str, object]:
    """Identity, temperature, the unit vectors (384,) of the photograph and of the texts."""
    import open_clip

    from synthesis.clip_source import shipped_clip_path

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{shipped_clip_path()}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{shipped_clip_path()}")
    with torch.inference_mode():
        image = F.normalize(model.eval().encode_image(preprocess(photograph(PHOTOGRAPH))[None]), dim=1)
        text = F.normalize(model.encode_text(tokenizer(TEXTS)), dim=1)
    return {
        "clip": load_clip().id,
        "logit_scale": round(model.logit_scale.exp().item(), 3),
        "photograph": PHOTOGRAPH,
        "image": [round(value, DIGITS) for value in image[0].tolist()],
        "texts": {name: [round(value, DIGITS) for value in row] for name, row in zip(TEXTS, text.tolist())},
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(answers()) + "\n")
    print(GOLDEN)
