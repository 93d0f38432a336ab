"""Features of recent training views, kept so that a step need not run the frozen nets on each of its images.

For families whose analysis begins with a frozen trunk: the trunk and the tower are most of a step on a CPU, and give
the same for the same view. A step computes them for a quarter of its batch and draws the rest from what is kept.
"""

from __future__ import annotations

import torch

from export.objective import TowerFeatures

CAPACITY = 16_384  # views; at 192 pixels 125 kB each
FRESH = 4  # one of so many views of a step is new


class Replay:
    """A ring of (trunk features, what the tower saw) of the last `capacity` views, all of one size."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity, self._kept, self._added = capacity, None, 0

    def add(self, trunk: torch.Tensor, wanted: TowerFeatures) -> None:
        """trunk (B, C, h, w) and the tower's features of B views; the oldest ones go."""
        new = [value for value in (trunk.bfloat16(), wanted.last, wanted.pooled) if value is not None]
        if self._kept is None or self._kept[0].shape[1:] != trunk.shape[1:]:  # another size of view: start over
            self._kept = [torch.empty(self._capacity, *v.shape[1:], dtype=v.dtype, device=v.device) for v in new]
            self._added = 0
        at = (self._added + torch.arange(len(trunk), device=trunk.device)) % self._capacity
        for kept, values in zip(self._kept, new, strict=True):
            kept[at] = values
        self._added += len(trunk)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, TowerFeatures]:
        """`count` kept views at random (with repetition), as `add` took them."""
        index = torch.randint(0, min(self._added, self._capacity), (count,), generator=generator)
        trunk, *last, pooled = (kept[index.to(kept.device)] for kept in self._kept)
        fast = torch.channels_last
        last = last[0] if last else None
        if last is not None and last.ndim == 4:
            last = last.contiguous(memory_format=fast)
        return trunk.contiguous(memory_format=fast), TowerFeatures(None, last, pooled)
