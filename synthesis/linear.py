"""Linear synthesis: integer symbols → RGB by one least-squares estimate and a transposed patch transform."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LinearSynthesis(nn.Module):
    """symbols (B, channels, h, w) and layer counts (B,) → RGB (B, 3, P·h, P·w) in [0, 1], P = `patch` pixels.

    `estimate` gives each patch's `components` from the symbols of the patch and its 8 neighbours, with weights of its
    own for every layer count; `patches` puts them back as pixels (the transpose of an orthonormal transform, plus the
    mean patch). Everything is linear: no activation, nothing that was learned by gradient.
    """

    def __init__(self, channels: int, layers: int, components: int, patch: int = 16) -> None:
        super().__init__()
        self.estimate = nn.Parameter(torch.zeros(layers, components, 9 * channels))
        self.offset = nn.Parameter(torch.zeros(layers, components))
        self.patches = nn.ConvTranspose2d(components, 3, patch, stride=patch, bias=False)
        self.mean_patch = nn.Parameter(torch.zeros(3, patch, patch))
        self.requires_grad_(False)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return self.unclamped(symbols, n_layers).clamp(0, 1)

    def unclamped(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        """Before the clamp to [0, 1]."""
        height, width = symbols.shape[2:]
        near = F.unfold(symbols, 3, padding=1)  # (B, 9 C, h w)
        estimate, offset = (each.index_select(0, n_layers - 1) for each in (self.estimate, self.offset))
        components = estimate @ near + offset[:, :, None]  # (B, K, h w)
        image = self.patches(components.unflatten(2, (height, width)))
        blocks = image.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # (B, 3, h, P, w, P)
        blocks = blocks.permute(0, 2, 4, 1, 3, 5) + self.mean_patch  # this way round graphs hold the patch as it is
        return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
