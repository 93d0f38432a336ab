"""Embedding synthesis: the integer symbols of a coded CLIP vector → the vector, by one linear map."""

from __future__ import annotations

import torch
from torch import nn


class EmbeddingSynthesis(nn.Module):
    """symbols (B, channels, 1, 1) and layer counts (B,) → unit vectors (B, dim).

    Absent symbols are zero, which is also the best guess of what they would have said: the layer count is not needed.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.axes = nn.Linear(channels, dim)  # bias: the mean vector; column c: what one step of channel c adds

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.axes(symbols.flatten(1)), dim=-1)
