"""A decoder as an ONNX file, for services that run synthesis in another runtime than torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import nn

OPSET = 18


def write_onnx(net: nn.Module, latent_shape: tuple[int, int, int], path: Path) -> None:
    """Writes `net` (see `synthesis.load`) to `path` as one file, by one rename.

    Inputs symbols float32 (B, C, h, w) and n_layers int64 (B,), output "out", B free. Needs onnx and onnxscript.
    """
    example = (torch.zeros(2, *latent_shape), torch.ones(2, dtype=torch.int64))
    batch = torch.export.Dim("batch", min=1, max=4096)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        torch.onnx.export(
            net.cpu().eval(),
            example,
            str(partial),
            input_names=["symbols", "n_layers"],
            output_names=["out"],
            opset_version=OPSET,
            dynamic_shapes={"symbols": {0: batch}, "n_layers": {0: batch}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        os.replace(partial, path)
