from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from thinwire.packet import Packet


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> Path:
    """A test-only CLIP folder of random weights; see tiny_clip.py."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_dir):
    import torch

    from cloud.networks.clip import load_clip

    torch.set_num_threads(1)
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory):
    """A codec of random weights, 96x96 views, two layers of 2 and 4 channels, with real tables and a real decoder."""
    return write_tiny_codec(tmp_path_factory.mktemp("bundles") / "tiny-codec")


@pytest.fixture(scope="session")
def make_packet(tiny_codec):
    """Returns (seed, n_layers) → the bytes of a real packet of `tiny_codec`."""

    def make(seed: int = 0, n_layers: int | None = None) -> bytes:
        symbols = np.random.default_rng(seed).integers(-3, 4, tiny_codec.latent_shape).astype(np.int32)
        return Packet(tiny_codec.model_id, tuple(tiny_codec.coder.encode(symbols, n_layers))).to_bytes()

    return make


@pytest.fixture
def serve(tiny_clip, tiny_codec):
    """Returns a function that starts a server of both on a free port; its arguments are those of `Served`."""
    from tests.cloud.served import Served

    running = []

    def start(**kwargs):
        running.append(Served(tiny_clip, tiny_codec, **kwargs))
        return running[-1]

    yield start
    for served in running:
        served.close()
