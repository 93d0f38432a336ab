"""Pixel synthesis: integer symbols at stride 16 → RGB, by residual blocks and pixel shuffles (Shi et al. 2016)."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))): no normalisation, so that absolute brightness survives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def upsample(width_in: int, width_out: int, factor: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width_in, width_out * factor**2, 3, padding=1), nn.PixelShuffle(factor))


class PixelSynthesis(nn.Module):
    """symbols (B, channels, h, w) and layer counts (B,) → RGB (B, 3, 16h, 16w) in [0, 1].

    Absent channels are zero; the learned bias of each layer count tells the net which zeros are absences. A linear
    path from symbols to 16x16 pixel patches (the inverse of a patch transform) runs beside the blocks, so that the net
    starts at, and never falls behind, linear decoding.
    """

    def __init__(self, channels: int, layers: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        w0, w1, w2 = widths
        b0, b1, b2 = blocks
        self.gain = nn.Parameter(torch.ones(channels))
        self.layer_bias = nn.Embedding(layers + 1, w0)
        self.stem = nn.Conv2d(channels, w0, 3, padding=1)
        self.deep = nn.Sequential(*[Residual(w0) for _ in range(b0)])
        self.up1 = upsample(w0, w1, 2)
        self.mid = nn.Sequential(*[Residual(w1) for _ in range(b1)])
        self.up2 = upsample(w1, w2, 2)
        self.fine = nn.Sequential(*[Residual(w2) for _ in range(b2)], nn.ReLU())
        self.out = upsample(w2, 3, 4)
        self.linear = nn.ConvTranspose2d(channels, 3, 16, stride=16)
        nn.init.zeros_(self.layer_bias.weight)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return self.unclamped(symbols, n_layers).clamp(0, 1)

    def unclamped(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        """The training view: without the clamp, whose gradient is zero outside the range."""
        y = (symbols.permute(0, 2, 3, 1) * self.gain).permute(0, 3, 1, 2)  # (B, C, h, w); graphs hold `gain` as it is
        x = self.stem(y) + self.layer_bias(n_layers)[:, :, None, None]
        x = self.fine(self.up2(self.mid(self.up1(self.deep(x)))))  # (B, w2, 4h, 4w)
        return self.out(x) + self.linear(y)
