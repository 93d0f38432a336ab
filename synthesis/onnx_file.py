"""Nets as ONNX files, with their weights or without: how every net here is exported. Needs onnx and onnxscript."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthesis.graph_files import OPSET as OPSET

ELSEWHERE = "brought-by-the-reader"


def export_onnx(net: nn.Module, example: dict[str, torch.Tensor], output: str, path: Path) -> None:
    """Writes `net` to `path` as one self-contained file, by one rename.

    example: inputs by the names of `forward`'s arguments; the first axis of each is a free batch.
    """
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        _program(net, example, output, {}, optimize=True).save(str(partial), external_data=False)
        os.replace(partial, path)


def write_graph(
    net: nn.Module,
    example: dict[str, torch.Tensor],
    output: str,
    path: Path,
    free: Mapping[str, Mapping[int, Any]] | None = None,
) -> None:
    """As `export_onnx`, without the net's weights: those who open the file bring them, under `state_dict`'s names, with
    ONNX Runtime's `add_external_initializers`. Small, and good for all weights of one architecture.

    free: more free axes, {input: {axis: `torch.export.Dim`}}. Raises `ValueError` where the file's own constants are
    beyond 1 MiB: then weights hide among them.
    """
    import onnx
    from onnxscript import ir, optimizer

    weights = {name for name, value in net.state_dict().items() if value.is_floating_point()}
    model = _program(net, example, output, free or {}, optimize=False).model
    graph = model.graph
    # The optimiser must take weights for unknown: it would turn them into others (transposed, added up, cast)
    kept = {name: (value, value.const_value) for name, value in graph.initializers.items() if name in weights}
    for name, (value, _) in kept.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize(model)
    for name, (value, tensor) in kept.items():
        graph.inputs.remove(value)
        value.const_value = tensor
        graph.initializers[name] = value
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.name in kept:
            tensor.ClearField("raw_data")
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=ELSEWHERE)
    for node in proto.graph.node:  # stack traces and shapes: most of what is left
        node.ClearField("metadata_props")
    proto.graph.ClearField("value_info")
    proto.ClearField("metadata_props")
    data = proto.SerializeToString(deterministic=True)
    if len(data) > 1 << 20:
        raise ValueError(f"{path.name}: {len(data) >> 10} KiB of graph: weights are among its constants")
    with tempfile.TemporaryDirectory(prefix=".graph-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(data)
        os.replace(partial, path)


def _program(
    net: nn.Module,
    example: dict[str, torch.Tensor],
    output: str,
    free: Mapping[str, Mapping[int, Any]],
    *,
    optimize: bool,
) -> torch.onnx.ONNXProgram:
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names of axes that no file here has
        return torch.onnx.export(
            net.eval(),
            tuple(example.values()),
            input_names=list(example),
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes={name: {0: batch, **free.get(name, {})} for name in example},
            dynamo=True,
            verbose=False,
            optimize=optimize,
        )
