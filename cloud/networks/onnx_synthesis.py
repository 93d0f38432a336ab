"""Decoders in ONNX Runtime: `--synthesis-backend onnx`, and `auto` on a CPU for architectures that ship.

The same pictures sooner, and less disturbed by what else wants a core: ONNX Runtime hands out work in pieces, where
torch's OpenMP threads wait for the slowest. Every load compares both on the same symbols: what differs is not served.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

import synthesis
from cloud.errors import InferenceFailed
from cloud.networks.onnx.decoders import KIND
from cloud.networks.onnx_export import found_graph, graph_of
from cloud.networks.onnx_session import GraphNet
from synthesis.graph_files import graph_name

if TYPE_CHECKING:
    from cloud.networks.runner import Loader
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)

PIXEL_BOUND = 1 / 255  # largest difference from torch that is taken for rounding, of pixels in [0, 1]
COSINE_BOUND = 0.9999  # least cosine with torch's vectors
PROBES = 4


class OnnxNet(GraphNet):
    """A session behind the face of `synthesis.load`'s nets: (symbols (B, C, h, w), n_layers (B,)) → float32 tensor.

    On CUDA the tensors stay on the device: ONNX Runtime reads and writes torch's memory.
    """

    def __init__(self, graph: Path, net: nn.Module, device: str, out_shape: tuple[int, ...]) -> None:
        """As `GraphNet`; out_shape: of one item's output."""
        super().__init__(graph, net, torch.device(device), "--synthesis-backend torch")
        self._device = torch.device(device)
        self._out_shape = out_shape

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        symbols, n_layers = symbols.float().contiguous(), n_layers.to(torch.int64).contiguous()
        if self._device.type == "cpu":
            (out,) = self.session.run(["out"], {"symbols": symbols.numpy(), "n_layers": n_layers.numpy()})
            return torch.from_numpy(out)
        out = torch.empty((len(symbols), *self._out_shape), dtype=torch.float32, device=self._device)
        binding = self.session.io_binding()
        for name, tensor, kind in (("symbols", symbols, np.float32), ("n_layers", n_layers, np.int64)):
            binding.bind_input(name, "cuda", self._device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("out", "cuda", self._device.index or 0, np.float32, tuple(out.shape), out.data_ptr())
        self.session.run_with_iobinding(binding)
        return out


def loader(wanted: str) -> Loader:
    """What loads decoders for `wanted`, "auto", "torch" or "onnx".

    auto: ONNX Runtime on a CPU for architectures whose graph ships, or was written by `onnx` before; torch for the
    rest, because writing one takes seconds, and a bundle may come while others are being served.
    """
    return {"auto": _load_fitting, "torch": synthesis.load, "onnx": load_onnx}[wanted]


def load_onnx(bundle: Bundle, device: str, cache_dir: Path | None = None) -> OnnxNet:
    """The bundle's decoder in ONNX Runtime. cache_dir: as for `graph_of`.

    Raises what `synthesis.load` and `graph_of` raise, or `InferenceFailed` when its outputs are not torch's.
    """
    net = synthesis.load(bundle, "cpu")
    return _in_onnx(bundle, net, device, decoder_graph(bundle, net, cache_dir))


def decoder_graph(bundle: Bundle, net: nn.Module, cache_dir: Path | None = None) -> Path:
    """The graph of the bundle's decoder `net`, as `graph_of` has it."""
    example = {"symbols": torch.zeros(2, *bundle.latent_shape), "n_layers": torch.ones(2, dtype=torch.int64)}
    return graph_of(_name(bundle), net, example, "out", cache_dir)


def _name(bundle: Bundle) -> str:
    return graph_name(KIND, bundle.card.cloud["synthesis"], bundle.latent_shape)


def _load_fitting(bundle: Bundle, device: str) -> nn.Module:
    net = synthesis.load(bundle, device)
    if device != "cpu" or importlib.util.find_spec("onnxruntime") is None:
        return net
    try:
        path = found_graph(_name(bundle))
        return net if path is None else _in_onnx(bundle, net, device, path)
    except Exception as error:  # runtimes raise kinds of their own
        log.info("bundle %s: decoder in torch, not in ONNX Runtime: %s", bundle.name, error)
        return net


def _in_onnx(bundle: Bundle, net: nn.Module, device: str, path: Path) -> OnnxNet:
    symbols, counts = _probes(bundle)
    with torch.inference_mode():
        wanted = net(symbols, counts)
        onnx_net = OnnxNet(path, net, device, tuple(wanted.shape[1:]))
        got = onnx_net(symbols.to(device), counts.to(device)).cpu()
    _check(bundle, path, wanted, got)
    return onnx_net


def _probes(bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols float32 (PROBES, C, h, w) within the card's range, and layer counts from 1 up."""
    layers = max(bundle.rates.values())
    low, high = bundle.coder.low, bundle.coder.high
    if bundle.has_encoder:  # most symbols are small
        low, high = max(low, -8), min(high, 8)
    symbols = np.random.default_rng(0).integers(low, high + 1, (PROBES, *bundle.latent_shape))
    counts = torch.arange(PROBES, dtype=torch.int64) % layers + 1
    return torch.from_numpy(symbols.astype(np.float32)), counts


def _check(bundle: Bundle, path: Path, wanted: torch.Tensor, got: torch.Tensor) -> None:
    if wanted.ndim == 2:
        worst = float(nn.functional.cosine_similarity(wanted, got, dim=-1).min())
        fits, told = worst >= COSINE_BOUND, f"least cosine {worst:.6f}"
    else:
        worst = float((wanted - got).abs().max())
        fits, told = worst <= PIXEL_BOUND, f"largest difference {worst:.5f}"
    if not fits:
        raise InferenceFailed(
            f"bundle {bundle.name!r} in ONNX Runtime does not give torch's outputs ({told}): delete {path} and start "
            "again, or use --synthesis-backend torch"
        )
