"""Nets as ONNX files: how every net here is exported, and decoders for services that run them without torch."""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
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


def write_graph(net: nn.Module, example: dict[str, torch.Tensor], output: str, path: Path) -> None:
    """As `export_onnx`, without the net's weights: those who open the file bring them (`state_dict`'s names, with
    ONNX Runtime's `add_external_initializers`), so that it is small and serves all weights of one architecture.

    Raises `ValueError` for a net whose weights the exporter turns into others (attention, for one).
    """
    import onnx
    from onnx import numpy_helper

    net = copy.deepcopy(net)
    random = torch.Generator().manual_seed(0)
    for value in net.state_dict().values():  # the exporter would make one of two equal ones
        value.copy_(torch.rand(value.shape, generator=random))
    with tempfile.TemporaryDirectory(prefix=".graph-", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        export_onnx(net, example, output, whole)
        model = onnx.load(whole)
        left = net.state_dict()
        for tensor in model.graph.initializer:
            weight = left.get(tensor.name)
            if weight is not None and np.array_equal(numpy_helper.to_array(tensor), weight.numpy()):
                del left[tensor.name]
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="brought-by-the-reader")
        if left:
            raise ValueError(f"{len(left)} of its weights do not stand in the graph as they are")
        for node in model.graph.node:  # stack traces and shapes: most of what is left
            node.ClearField("metadata_props")
        model.graph.ClearField("value_info")
        whole.write_bytes(model.SerializeToString())
        os.replace(whole, path)


def graph_digest(net: nn.Module) -> str:
    """16 hex digits over a net's architecture: modules, and the names and shapes of its weights."""
    shapes = [(name, tuple(value.shape)) for name, value in sorted(net.state_dict().items())]
    return hashlib.sha256(f"{OPSET} {net} {shapes}".encode()).hexdigest()[:16]


def write_onnx(net: nn.Module, latent_shape: tuple[int, int, int], path: Path) -> None:
    """Writes `net` (see `synthesis.load`) to `path`: inputs symbols float32 (B, C, h, w) and n_layers int64 (B,),
    output "out"."""
    example = {"symbols": torch.zeros(2, *latent_shape), "n_layers": torch.ones(2, dtype=torch.int64)}
    export_onnx(net.cpu().eval(), example, "out", path)
