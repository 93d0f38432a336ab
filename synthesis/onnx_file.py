"""Nets as ONNX files: how every net here is exported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import nn

OPSET = 18


def export_onnx(net: nn.Module, example: dict[str, torch.Tensor], output: str, path: Path) -> None:
    """Writes `net` to `path` as one self-contained file, by one rename. Needs onnx and onnxscript.

    example: inputs by the names of `forward`'s arguments; the first axis of each is a free batch.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        torch.onnx.export(
            net,
            tuple(example.values()),
            str(partial),
            input_names=list(example),
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes={name: {0: batch} for name in example},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        os.replace(partial, path)
