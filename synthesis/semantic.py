"""Semantic synthesis: integer symbols at stride 32 → a CLIP's image embedding, with no pixels on the way."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018), batch norm folded; residual where the widths agree."""

    def __init__(self, width_in: int, width_out: int, expanded: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(width_in, expanded, 1)
        self.conv_dw = nn.Conv2d(expanded, expanded, kernel, stride, kernel // 2, groups=expanded)
        self.conv_pwl = nn.Conv2d(expanded, width_out, 1)
        self.residual = width_in == width_out and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_pwl(F.relu6(self.conv_dw(F.relu6(self.conv_pw(x)))))
        return x + y if self.residual else y


class SemanticSynthesis(nn.Module):
    """symbols (B, channels, h, w) and layer counts (B,) → unit embeddings (B, dim).

    The blocks have the shapes of EfficientNet-Lite0's end, less its last residual block at stride 32, so that they can
    begin as those; `fc1` and `fc2` are the head of clip-lite. Absent channels are zero; the bias of each layer count
    tells the net which zeros are absences.
    """

    def __init__(self, channels: int, layers: int, dim: int, features: int = 1280, hidden: int = 768) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4 * 112, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.layer_bias = nn.Embedding(layers + 1, 112)
        self.middle = nn.Sequential(*[InvertedResidual(112, 112, 672, 5) for _ in range(2)])
        self.deep = nn.Sequential(
            InvertedResidual(112, 192, 672, 5, stride=2),
            *[InvertedResidual(192, 192, 1152, 5) for _ in range(2)],
            InvertedResidual(192, 320, 1152, 3),
        )
        self.conv_head = nn.Conv2d(320, features, 1)
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.layer_bias.weight)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.last_map(symbols, n_layers))

    def last_map(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        """(B, features, h, w), which training compares with the tower's."""
        x = self.shuffle(self.stem(symbols)) + self.layer_bias(n_layers)[:, :, None, None]
        return F.relu6(self.conv_head(self.deep(self.middle(x))))

    def embedding(self, last: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.fc2(F.gelu(self.fc1(last.mean((2, 3)).float()))), dim=-1)
