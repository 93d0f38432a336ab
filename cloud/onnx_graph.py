"""A net as an ONNX graph without its weights: small, and good for all weights of one architecture."""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synthesis.onnx_file import OPSET, export_onnx


def write_graph(net: nn.Module, example: dict[str, torch.Tensor], output: str, path: Path) -> None:
    """As `export_onnx`, without the net's weights: those who open the file bring them, under `state_dict`'s names, with
    ONNX Runtime's `add_external_initializers`.

    Raises `ValueError` for a net whose weights the exporter turns into others (attention, for one).
    """
    import onnx
    from onnx import numpy_helper

    net = copy.deepcopy(net).eval()
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
