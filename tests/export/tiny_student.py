"""A real student of a tiny CLIP, distilled for a step: EfficientNet-Lite0 at 96 pixels. Its answers mean little."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from export.cli import main
from tests.export.photographs import crops

WORDS = ["--size", "96", "--batch", "8", "--count", "64"]


def pictures(folder: Path, count: int = 96) -> Path:
    """A folder of photographs to learn from."""
    folder.mkdir(parents=True)
    for number, view in enumerate(crops(count, seed=3)):
        Image.fromarray(view).save(folder / f"{number:03}.png")
    return folder


def make_tiny_student(folder: Path, clip: Path) -> Path:
    """Its bundle, in `folder`."""
    images = pictures(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(folder / "cache"))
        words = ["student", "--clip", str(clip), "--images", str(images), "--out", str(folder / "run"), "--steps", "1"]
        assert main([*words, *WORDS]) == 0
    return folder / "run" / "bundle"
