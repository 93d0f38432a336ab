"""CLIP's image tower as CUDA graphs for small batches: one launch in place of hundreds. CUDA only.

A ViT-B/32 is about 150 kernels; at batch 1 a GPU waits longer for the CPU to launch them than it computes. Recorded
once and replayed, they cost one launch. At larger batches computing hides the launches, so those run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloud.networks.precision import parity_of

if TYPE_CHECKING:
    from cloud.networks.clip import Clip

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8)
SAME = 0.99999  # cosine of replayed and plain vectors: the kernels are the same, only padding differs


@dataclass(frozen=True, eq=False)
class Recording:
    """`replay` computes `output` (B, D) from what is in `input` (B, 3, H, W); both stay where they are."""

    input: torch.Tensor
    output: torch.Tensor
    replay: Callable[[], None]


def record_cuda(tower: nn.Module, example: torch.Tensor) -> Recording:
    """Records `tower(example)` on the current CUDA device."""
    still = example.clone(memory_format=torch.channels_last)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their algorithms in the first runs, which must not be recorded
        for _ in range(3):
            tower(still)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = tower(still)
    return Recording(still, output, graph.replay)


class GraphedTower(nn.Module):
    """`tower` for batches of any size: the smallest recording that holds the batch, or the tower itself above all.

    Not thread-safe: recordings have one input each. `cloud.networks.runner.TorchRunner` runs one batch at a time.
    """

    def __init__(
        self,
        tower: nn.Module,
        example: torch.Tensor,
        sizes: Sequence[int] = SIZES,
        record: Callable[[nn.Module, torch.Tensor], Recording] = record_cuda,
    ) -> None:
        """example: one image as the tower takes it, (1, 3, H, W) in its dtype on its device."""
        super().__init__()
        self.tower = tower
        self._recordings = {size: record(tower, example.repeat(size, 1, 1, 1)) for size in sorted(sizes)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = next((size for size in self._recordings if size >= len(images)), None)
        if size is None:
            return self.tower(images)
        recording = self._recordings[size]
        recording.input[: len(images)].copy_(images)  # rows beyond hold older images; theirs are not looked at
        recording.replay()
        return recording.output[: len(images)].clone()


def with_graphs(clip: Clip, record: Callable[[nn.Module, torch.Tensor], Recording] = record_cuda) -> Clip:
    """`clip` with its image tower recorded; `clip` itself where that fails or gives other vectors."""
    try:
        with torch.inference_mode():
            dtype = clip.image_dtype or torch.float32
            example = torch.zeros(1, 3, clip.image_height, clip.image_width, dtype=dtype, device=clip.device)
            graphed = clip.with_visual(GraphedTower(clip.model.visual, example, record=record))
            parity = parity_of(clip, graphed, 3)
    except RuntimeError as error:  # a tower that synchronises or allocates on the host cannot be recorded
        log.warning("CLIP %s: its image tower cannot be recorded as a CUDA graph (%s)", clip.name, error)
        return clip
    if parity.cosine_min < SAME:
        log.warning("CLIP %s: its CUDA graph gives different vectors (cosine %.6f)", clip.name, parity.cosine_min)
        return clip
    return graphed
