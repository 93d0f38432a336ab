"""A net as an ONNX graph without its weights: small, and good for all weights of one architecture.

What clip-lite and the shipped bundles need ships (`scripts/ship_graphs.py`); other graphs are written once and kept in
the cache.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cloud.engine.text_heads import default_cache_dir
from cloud.errors import DeviceUnavailable
from synthesis.onnx_file import OPSET, export_onnx
from thinwire.bundle import MODELS

log = logging.getLogger(__name__)

SHIPPED_GRAPHS = MODELS / "graphs"
EXPORTERS = ("onnx", "onnxscript")  # with onnxruntime the extra `cloud-onnx`


def graph_of(
    kind: str, net: nn.Module, example: dict[str, torch.Tensor], output: str, cache_dir: Path | None = None
) -> Path:
    """Where the graph of `net`'s architecture stands: where `find_graph` finds it, or in the cache, there now.

    Raises `DeviceUnavailable` where it cannot be written, and what `write_graph` raises.
    """
    if (found := find_graph(kind, net, cache_dir)) is not None:
        return found
    if missing := [package for package in EXPORTERS if importlib.util.find_spec(package) is None]:
        raise DeviceUnavailable(f"{', '.join(missing)} not installed: pip install 'thinwire[cloud-onnx]'")
    path = _cache(cache_dir) / _name(kind, net)
    log.info("writing %s for ONNX Runtime, once", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_graph(net, example, output, path)
    return path


def find_graph(kind: str, net: nn.Module, cache_dir: Path | None = None) -> Path | None:
    """The graph of `net`'s architecture that ships or is in the cache.

    cache_dir: None for `graphs` beside the cache of text heads.
    """
    places = [folder / _name(kind, net) for folder in (SHIPPED_GRAPHS, _cache(cache_dir))]
    return next((place for place in places if place.is_file()), None)


def _name(kind: str, net: nn.Module) -> str:
    return f"{kind}-{graph_digest(net)}.onnx"


def _cache(cache_dir: Path | None) -> Path:
    return cache_dir or default_cache_dir().parent / "graphs"


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
            raise ValueError(f"{len(left)} of its weights are not in the graph unchanged")
        for node in model.graph.node:  # stack traces and shapes: most of what is left
            node.ClearField("metadata_props")
        model.graph.ClearField("value_info")
        whole.write_bytes(model.SerializeToString())
        os.replace(whole, path)


def graph_digest(net: nn.Module) -> str:
    """16 hex digits over a net's architecture: modules, and the names and shapes of its weights."""
    shapes = [(name, tuple(value.shape)) for name, value in sorted(net.state_dict().items())]
    return hashlib.sha256(f"{OPSET} {net} {shapes}".encode()).hexdigest()[:16]
