"""TEST ONLY: a bundle with real tables and a real decoder net of random weights; its encoder is no ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thinwire.bundle import Bundle, write_bundle
from thinwire.tables import count_tables

LAYERS = [(0, 2), (2, 6)]
SHAPE = (6, 6, 6)


def write_tiny_codec(folder: Path, seed: int = 0, output: str = "pixels", **cloud: object) -> Bundle:
    """Writes a two-layer codec for 96x96 views into `folder`; `cloud` adds to its card."""
    import torch
    from safetensors.torch import save

    import synthesis

    rng = np.random.default_rng(seed)
    symbols = np.clip(np.round(rng.normal(0, 1.5, (64, *SHAPE))), -4, 4).astype(np.int32)
    spec = {"arch": "pixels", "channels": SHAPE[0], "layers": len(LAYERS), "widths": [8, 8, 8], "blocks": [1, 0, 0]}
    torch.manual_seed(seed)
    return write_bundle(
        folder,
        name=folder.name,
        wire={
            "family": "test",
            "input": {"height": 96, "width": 96, "resize": "shortest-crop", "filter": "bicubic"},
            "latent": {"channels": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2]},
            "layers": [{"channels": list(span)} for span in LAYERS],
            "rates": [{"name": "low", "layers": 1}, {"name": "high", "layers": 2}],
            "context": "checkerboard",
        },
        tables=count_tables(symbols, LAYERS, "checkerboard"),
        encoder=b"no encoder: the cloud does not need one",
        decoder=save(synthesis.build(spec).state_dict()),
        cloud={"output": output, "synthesis": spec, **cloud},
    )
