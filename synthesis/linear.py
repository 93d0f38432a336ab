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
        which = n_layers - 1
        components = self.estimate[which] @ near + self.offset[which][:, :, None]  # (B, K, h w)
        image = self.patches(components.unflatten(2, (height, width)))
        return image + self.mean_patch.tile(1, height, width)
