"""Synthesis by ONNX Runtime in place of torch: `--synthesis-backend onnx`.

The decoder is written as an ONNX file at its first use and kept in the cache under a hash of its weights, so that a
changed decoder is another file. Every load compares both runtimes on the same symbols: what differs is never served.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from cloud.errors import InferenceFailed
from cloud.head import default_cache_dir
from cloud.onnx_session import open_session

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)

VERSION = 1  # of the files in the cache
PIXEL_BOUND = 1 / 255  # largest difference from torch that is taken for rounding, of pixels in [0, 1]
COSINE_BOUND = 0.9999  # least cosine with torch's vectors
PROBES = 4


class OnnxNet(nn.Module):
    """A session behind the face of `synthesis.load`'s nets: (symbols (B, C, h, w), n_layers (B,)) → float32 tensor.

    On CUDA the tensors stay on the device: ONNX Runtime reads and writes torch's memory.
    """

    def __init__(self, path: Path, device: str, out_shape: tuple[int, ...]) -> None:
        """out_shape: of one item's output. Raises `DeviceUnavailable` where the device's provider is not there."""
        super().__init__()
        self._device = torch.device(device)
        self._out_shape = out_shape
        self._session = open_session(path, self._device, "--synthesis-backend torch")
        self.nbytes = path.stat().st_size

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        symbols, n_layers = symbols.float().contiguous(), n_layers.to(torch.int64).contiguous()
        if self._device.type == "cpu":
            (out,) = self._session.run(["out"], {"symbols": symbols.numpy(), "n_layers": n_layers.numpy()})
            return torch.from_numpy(out)
        out = torch.empty((len(symbols), *self._out_shape), dtype=torch.float32, device=self._device)
        binding = self._session.io_binding()
        for name, tensor, kind in (("symbols", symbols, np.float32), ("n_layers", n_layers, np.int64)):
            binding.bind_input(name, "cuda", self._device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("out", "cuda", self._device.index or 0, np.float32, tuple(out.shape), out.data_ptr())
        self._session.run_with_iobinding(binding)
        return out


def load_onnx(bundle: Bundle, device: str, cache_dir: Path | None = None) -> OnnxNet:
    """The bundle's decoder in ONNX Runtime, exported when it is not in the cache.

    cache_dir: None for `decoders` beside the cache of text heads. Raises what `synthesis.load` raises,
    `DeviceUnavailable`, or `InferenceFailed` when its outputs are not torch's.
    """
    import synthesis

    net = synthesis.load(bundle, "cpu")
    folder = cache_dir or default_cache_dir().parent / "decoders"
    path = folder / f"{bundle.name}-{_content(bundle)}.onnx"
    if not path.is_file():
        from synthesis.onnx_file import write_onnx

        folder.mkdir(parents=True, exist_ok=True)
        write_onnx(net, bundle.latent_shape, path)
        log.info("wrote %s", path)
    symbols, counts = _probes(bundle)
    with torch.inference_mode():
        wanted = net(symbols, counts)
        onnx_net = OnnxNet(path, device, tuple(wanted.shape[1:]))
        got = onnx_net(symbols.to(device), counts.to(device)).cpu()
    _check(bundle, path, wanted, got)
    return onnx_net


def _content(bundle: Bundle) -> str:
    """Of the weights and of the net that they are for."""
    decoder = bundle.card.cloud
    text = json.dumps([VERSION, decoder["files"], decoder["synthesis"], torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _probes(bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols float32 (PROBES, C, h, w) within the card's range, and layer counts from 1 up."""
    latent, layers = bundle.card.wire["latent"], len(bundle.card.wire["layers"])
    low, high = max(latent["low"], -8), min(latent["high"], 8)
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
