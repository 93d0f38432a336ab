"""`--runtime torch`: any CLIP that open_clip loads. On a CPU ONNX Runtime runs what it runs sooner than torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

import synthesis
from cloud.errors import DeviceUnavailable
from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip, pick_device
from cloud.networks.onnx_synthesis import loader
from cloud.networks.precision import in_precision
from cloud.networks.runner import Net, TorchRunner, module_bytes
from synthesis.merging import adapted_tower, variant_net
from thinwire.errors import AdapterError

if TYPE_CHECKING:
    from cloud.networks.clip import Clip
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


class TorchRuntime:
    """CLIPs through open_clip and decoders of `synthesis`, on one torch device: a `cloud.networks.runtime.Runtime`."""

    name = "torch"

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        clip_backend: str = "auto",
        synthesis_backend: str = "auto",
    ) -> None:
        """device: as for `pick_device`; threads: of torch on a CPU; precision: as for `in_precision`; clip_backend: as
        for `cloud.networks.onnx_tower.in_backend`; synthesis_backend: as for `loader`. Raises `DeviceUnavailable`."""
        if device.startswith("tensorrt"):
            raise DeviceUnavailable(f"--device {device}: --runtime torch knows no TensorRT; use --runtime onnx")
        self.device, self._threads = pick_device(device), threads
        self._precision, self._clip_backend = precision, clip_backend
        if threads:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self.runner = TorchRunner(None, load=loader(synthesis_backend))

    def load_clip(self, spec: str) -> tuple[Clip, int]:
        clip = as_served(load_clip(spec, self.device), self._precision, self._clip_backend)
        return clip, module_bytes(clip.model)

    def load_adapted(self, spec: str, clip: Clip, adapter: Adapter) -> tuple[Clip, int]:
        adapted = adapted_clip(load_clip(spec, self.device), adapter)
        adapted = as_served(adapted, self._precision, self._clip_backend)
        tower = adapted.model.visual  # all that is kept of what was loaded: `clip` has the same text tower
        shared = clip.with_visual(tower, image_dtype=adapted.image_dtype, channels_last=adapted.channels_last)
        return shared, module_bytes(tower)

    def load_net(self, bundle: Bundle, clip: Clip, variant: DecoderVariant | None, spec: str) -> tuple[Net, int]:
        tuned = None
        if variant is not None:  # weights as they were tuned on: those in use may be folded or in half precision
            original = load_clip(spec, self.device)
            variant.check_clip(original.id)
            module = variant_net(variant, original.model.visual, original.image_height, original.image_width)
            tuned = Net(module, variant.gives_vectors)
        net = self.runner.load_net(bundle, clip, tuned)
        return net, net.nbytes

    def id_of(self, spec: str) -> str | None:
        return None

    def prepare_thread(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # OpenMP keeps this setting per thread


def as_served(clip: Clip, precision: str = "auto", backend: str = "auto") -> Clip:
    """Makes the image tower of a `clip` from `load_clip` as fast as this machine allows.

    Folds its batch normalisation, converts it to `precision` (`cloud.networks.precision.in_precision`), records CUDA
    graphs on a GPU, and moves it to `backend` (`cloud.networks.onnx_tower.in_backend`).
    """
    from cloud.networks.onnx_tower import in_backend

    clip = in_precision(folded(clip), precision)
    if clip.device.startswith("cuda"):
        from cloud.networks.cuda_graphs import with_graphs

        clip = with_graphs(clip)
    return in_backend(clip, backend)


def served_runner(clip: Clip, bundles: Sequence[Bundle], precision: str = "auto") -> TorchRunner:
    """The networks as a torch server has them by default, without an engine; `clip` as `load_clip` gives it."""
    return TorchRunner(as_served(clip, precision), bundles, loader("auto"))


def adapted_clip(clip: Clip, adapter: Adapter) -> Clip:
    """`clip` (float32, as `load_clip` gives it) with the adapter in a copy of its image tower; texts stay as they are.

    Raises `AdapterError` for another CLIP than the adapter was trained on, or when the merged tower cannot answer.
    """
    adapter.check_clip(clip.id)
    merged = clip.with_visual(adapted_tower(adapter, clip.model.visual))
    canary = merged.encode_images(torch.full((1, 3, clip.image_height, clip.image_width), 0.5, device=clip.device))
    if not canary.isfinite().all():
        raise AdapterError(f"adapter {adapter.path} makes the tower of {clip.id} give NaN: train it again")
    return merged


def numpy_decoder(bundle: Bundle) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The bundle's decoder on the CPU with arrays for tensors. Raises what `synthesis.load` raises."""
    net = synthesis.load(bundle)

    def decode(symbols: np.ndarray, n_layers: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(symbols).float(), torch.from_numpy(n_layers)).float().numpy()

    return decode
