"""Batches for a training: the same ones for the same seed and step, decoded while earlier ones are used."""

from __future__ import annotations

import torch

from export.photographs.collection import Photographs

AHEAD = 4  # batches
_STRIDE = 1_000_003


class Feed:
    """Random batches of photographs. `step` is how many were given; set it to go on with a run.

    part: of each batch that this process takes (see `export.distributed.Group.part`).
    """

    def __init__(self, photographs: Photographs, batch: int, seed: int, part: slice = slice(None)) -> None:
        self.photographs, self.batch, self.seed, self.part = photographs, batch, seed, part
        self.step = 0
        self._asked = 0

    def next(self) -> torch.Tensor:
        """uint8 (b, side, side, 3)."""
        self._asked = max(self._asked, self.step)
        while self._asked <= self.step + AHEAD:
            self.photographs.ahead(self._ids(self._asked))
            self._asked += 1
        images = self.photographs.take(self._ids(self.step))
        self.step += 1
        return torch.from_numpy(images)

    def _ids(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * _STRIDE + step)
        return self.photographs.draw(self.batch, generator).sort().values[self.part]
