"""TEST ONLY: a tuned decoder of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

import synthesis
from cloud.networks.clip import Clip
from export.taps import find_entry
from synthesis.variant import DecoderVariant, write_variant
from tests.cloud.tiny_codec import SHAPE
from thinwire.bundle import Bundle


def random_variant(folder: Path, bundle: Bundle, clip: Clip, into: str, seed: int = 7) -> DecoderVariant:
    """A decoder of random weights, far from the bundle's own."""
    torch.manual_seed(seed)
    if into == "pixels":
        spec, entry = bundle.card.cloud["synthesis"], None
    else:
        found = find_entry(clip.model.visual, clip.image_height, clip.image_width)
        entry = found.to_card()
        spec = {
            "arch": "neck",
            "channels": SHAPE[0],
            "layers": 2,
            "out": found.channels,
            "height": found.height,
            "width": found.width,
            "prefix": found.prefix,
            "tokens": found.is_tokens,
            "finer": False,
            "hidden": 8,
            "blocks": 1,
            "fine": 8,
        }
    net = synthesis.build(spec)
    return write_variant(folder, net, clip=clip.id, bundle=bundle, into=into, spec=spec, entry=entry, about={})
