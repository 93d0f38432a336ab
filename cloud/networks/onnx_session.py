"""Graphs in the place of torch modules, for `--runtime torch`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cloud.networks.onnx.session import Place, open_graph


class GraphNet(nn.Module):
    """A graph that was written without weights (`synthesis.onnx_file`), run with those of `net`, on the CPU.

    `session` runs it on `device`, with as many CPU threads as torch; `nbytes`: of its weights. `fallback_flag`: the
    flag, named in errors, that avoids ONNX Runtime.
    """

    def __init__(self, graph: Path, net: nn.Module, device: torch.device, fallback_flag: str) -> None:
        """Raises `DeviceUnavailable` where the device's provider is not there, and what `open_graph` raises."""
        super().__init__()
        place, options = Place("cpu", 0, torch.get_num_threads()), {}
        if device.type == "cuda":
            place = Place("cuda", device.index or torch.cuda.current_device(), torch.get_num_threads())
            options = {"user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream)}
        weights = {name: value.contiguous().numpy() for name, value in net.state_dict().items()}
        self._graph = open_graph(graph, place, weights, f"use {fallback_flag}", **options)
        self.session, self.nbytes = self._graph.session, self._graph.nbytes
