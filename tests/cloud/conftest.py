from __future__ import annotations

from pathlib import Path

import pytest

from tests.cloud.tiny_clip import write_tiny_clip


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> Path:
    """A test-only CLIP folder of random weights; see tiny_clip.py."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_dir):
    import torch

    from cloud.clip import load_clip

    torch.set_num_threads(1)
    return load_clip(str(tiny_clip_dir))
