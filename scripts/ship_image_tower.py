"""Writes the graph of the shipped CLIP's image tower beside its weights, for `cloud/onnx_tower.py`.

    python scripts/ship_image_tower.py

To be run when the architecture of clip-lite changes, not when its weights do: the graph holds none.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cloud.clip import load_clip, shipped_clip_path
from cloud.folded import folded
from cloud.onnx_tower import write_tower

if __name__ == "__main__":
    clip = folded(load_clip())
    for old in shipped_clip_path().glob("image_tower-*.onnx"):
        old.unlink()
    print(write_tower(clip.model.visual, clip.image_height, clip.image_width, shipped_clip_path()))
