"""A net as an ONNX graph without its weights: small, and good for all weights of one architecture.

What clip-lite and the shipped bundles need ships (`scripts/ship_graphs.py`); other graphs are written once and kept in
the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path

import torch
from torch import nn

from cloud.engine.text_heads import default_cache_dir
from cloud.errors import DeviceUnavailable
from synthesis.graph_files import OPSET, find_graph
from synthesis.onnx_file import write_graph

log = logging.getLogger(__name__)

EXPORTERS = ("onnx", "onnxscript")


def graph_of(
    name: str, net: nn.Module, example: dict[str, torch.Tensor], output: str, cache_dir: Path | None = None
) -> Path:
    """Where the graph of that name stands: where `found_graph` finds it, or in the cache, there now, as `net`'s.

    Raises `DeviceUnavailable` where it cannot be written, and what `write_graph` raises.
    """
    if (found := found_graph(name, cache_dir)) is not None:
        return found
    if missing := [package for package in EXPORTERS if importlib.util.find_spec(package) is None]:
        raise DeviceUnavailable(f"{', '.join(missing)} not installed: pip install 'thinwire[cloud-torch]'")
    path = _cache(cache_dir) / name
    log.info("writing %s for ONNX Runtime, once", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_graph(net, example, output, path)
    return path


def found_graph(name: str, cache_dir: Path | None = None) -> Path | None:
    """The graph of that name that ships or is in the cache.

    cache_dir: None for `graphs` beside the cache of text heads.
    """
    return find_graph(name, [_cache(cache_dir)])


def _cache(cache_dir: Path | None) -> Path:
    return cache_dir or default_cache_dir().parent / "graphs"


def tower_name(net: nn.Module) -> str:
    """The file of an image tower's graph."""
    return f"image_tower-{graph_digest(net)}.onnx"


def graph_digest(net: nn.Module) -> str:
    """16 hex digits over a net's architecture: modules, and the names and shapes of its weights."""
    shapes = [(name, tuple(value.shape)) for name, value in sorted(net.state_dict().items())]
    return hashlib.sha256(f"{OPSET} {net} {shapes}".encode()).hexdigest()[:16]
