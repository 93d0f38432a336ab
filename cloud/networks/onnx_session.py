"""ONNX Runtime sessions with the settings of the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloud.errors import DeviceUnavailable

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime as ort


class GraphNet(nn.Module):
    """A graph that was written without weights (`cloud.networks.onnx_export`), run with those of `net`, on the CPU.

    `session` runs it on `device`; `nbytes`: of its weights. `fallback_flag`: the flag, named in errors, that avoids
    ONNX Runtime.
    """

    def __init__(self, graph: Path, net: nn.Module, device: torch.device, fallback_flag: str) -> None:
        """Raises `DeviceUnavailable` where the device's provider is not there."""
        super().__init__()
        # The session reads these arrays in place: they must live as long as it does
        self._weights = {name: value.contiguous().numpy() for name, value in net.state_dict().items()}
        self.nbytes = sum(value.nbytes for value in self._weights.values())
        self.session = _open_session(graph, device, fallback_flag, self._weights)


def _open_session(
    graph: Path, device: torch.device, fallback_flag: str, weights: dict[str, np.ndarray]
) -> ort.InferenceSession:
    """A session with as many CPU threads as torch. Spin-waiting is off: the next stage needs the cores.

    Raises `DeviceUnavailable`, which names `fallback_flag`.
    """
    import onnxruntime as ort

    provider, options = "CPUExecutionProvider", {}
    if device.type == "cuda":
        provider = "CUDAExecutionProvider"
        options = {
            "device_id": device.index or torch.cuda.current_device(),
            "user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream),
        }
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_external_initializers(
        list(weights), [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    )
    session = ort.InferenceSession(str(graph), settings, providers=[(provider, options)])
    if session.get_providers()[0] != provider:  # ONNX Runtime lists providers that it cannot load
        raise DeviceUnavailable(
            f"onnxruntime has no {provider} here: install the extra for this device (cloud-gpu), or use {fallback_flag}"
        )
    return session
