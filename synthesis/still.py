"""Synthesis for the family `still`: the picture that AV1 kept, with or without a network that restores it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Grain(nn.Module):
    """Adds noise of a fixed pattern to RGB in [0, 1], the same to all three colours; it has no weights.

    Networks read photographs, and photographs have grain: on the smooth pictures that a codec leaves at a few hundred
    bytes they fire wrongly. grain: standard deviation for each rung, in 1/255; height, width: of the view.
    """

    def __init__(self, grain: list[float], height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("grain", torch.tensor(grain, dtype=torch.float32) / 255, persistent=False)
        self.register_buffer("pattern", torch.from_numpy(grain_pattern(height, width)), persistent=False)

    def forward(self, x: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return x + self.grain.index_select(0, n_layers - 1)[:, None, None, None] * self.pattern


def grain_pattern(height: int, width: int) -> np.ndarray:
    """Nearly normal noise of mean 0 and standard deviation 1, float32 (height, width); the same on every machine.

    Sums of the four bytes of hashed positions: whole numbers alone (Murmur3's finaliser).
    """
    mask = np.uint64(0xFFFFFFFF)
    h = np.arange(1, height * width + 1, dtype=np.uint64) * np.uint64(0x9E3779B1) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ h >> np.uint64(shift)) * np.uint64(factor) & mask
    total = sum(h >> np.uint64(8 * place) & np.uint64(255) for place in range(4)).astype(np.float64)
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    return ((total - 4 * 127.5) / deviation).reshape(height, width).astype(np.float32)


class StillSynthesis(nn.Module):
    """planes (B, 3, H, W) in 0..255 and rungs from 1 (B,) → RGB (B, 3, H, W) in [0, 1]: the picture as it was decoded.

    grain, size: as `Grain` takes them (size is [height, width]). It has no weights.
    """

    def __init__(self, grain: list[float], size: list[int]) -> None:
        super().__init__()
        self.grain = Grain(grain, *size)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return self.grain(symbols / 255, n_layers).clamp(0, 1)


class Residual(nn.Module):
    """x + conv(relu(conv(x))): no normalisation, so that absolute brightness survives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(F.relu(self.a(x)))


class RestoreSynthesis(nn.Module):
    """planes (B, 3, H, W) in 0..255 and rungs from 1 (B,) → RGB (B, 3, H, W) in [0, 1]: what AV1 lost, guessed.

    One network for all rungs. It works on 4x4 and 8x8 blocks of pixels (H and W are multiples of 8), is told each
    picture's size and quality, and adds what it believes is missing, times the rung's `strength`: 0 leaves the decoded
    picture alone, which is right where guesses do harm.

    rungs: [pixels of a side, quality] of each; strength: of each, 0 to 1; widths: channels at 1/4 and 1/8 of the
    resolution; blocks: residual blocks at 1/8; grain, size: as of `StillSynthesis`, added at the end.
    """

    def __init__(
        self,
        rungs: list[list[int]],
        strength: list[float],
        widths: list[int],
        blocks: int,
        grain: list[float],
        size: list[int],
    ) -> None:
        super().__init__()
        if not len(rungs) == len(strength) == len(grain):
            raise ValueError("each rung needs a strength and a grain")
        w0, w1 = widths
        self.inp = nn.Conv2d(50, w0, 3, padding=1)
        self.down = nn.Conv2d(w0, w1, 2, stride=2)
        self.m = nn.ModuleList([Residual(w1) for _ in range(blocks)])
        self.cond = nn.Sequential(nn.Linear(2, 16), nn.ReLU())
        self.film = nn.Linear(16, 2 * w1)
        self.up = nn.Conv2d(w1, w0 * 4, 1)
        self.out = nn.Conv2d(w0, 48, 3, padding=1)
        conditions = torch.tensor([condition(size, quality) for size, quality in rungs])  # (rungs, 2)
        self.register_buffer("conditions", conditions, persistent=False)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float32), persistent=False)
        self.grain = Grain(grain, *size)
        for layer in (self.out, self.film):  # at first nothing is added
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return self.unclamped(symbols, n_layers).clamp(0, 1)

    def unclamped(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        """The training view: without the clamp, whose gradient is zero outside the range."""
        x = symbols / 255
        strength = self.strength.index_select(0, n_layers - 1)[:, None, None, None]
        x = x + strength * self.missing(x, self.conditions.index_select(0, n_layers - 1))
        return self.grain(x, n_layers)

    def missing(self, x: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1] (B, 3, H, W) and conditions (B, 2) → what should be added (B, 3, H, W)."""
        h = F.pixel_unshuffle(x - 0.5, 4) * 2  # (B, 48, H/4, W/4)
        told = conditions.to(h.dtype)[:, :, None, None].expand(-1, -1, h.shape[2], h.shape[3])
        h = self.inp(torch.cat([h, told], 1))  # (B, w0, H/4, W/4)
        g = self.down(h)  # (B, w1, H/8, W/8)
        scale, shift = self.film(self.cond(conditions))[:, :, None, None].chunk(2, 1)
        g = g * (1 + scale) + shift
        for block in self.m:
            g = block(g)
        h = h + F.pixel_shuffle(self.up(g), 2)
        return F.pixel_shuffle(self.out(h), 4)


def condition(size: int, quality: int) -> tuple[float, float]:
    """What the network is told of a rung: size in octaves from 112 pixels, quality about -1.5 to 2."""
    return math.log2(size / 112), (quality - 25) / 15


def restore_spec(wire: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """The `cloud.synthesis` of a restoring network for a still whose card has `wire` and, so far, `plain`.

    Untrained it shows what `plain` (arch "still") shows.
    """
    return {
        "arch": "restore",
        "rungs": [[min(each["width"], each["height"]), each["quality"]] for each in wire["stills"]],
        "strength": [1.0] * len(wire["stills"]),
        "widths": [32, 96],
        "blocks": 4,
        "grain": plain["grain"],
        "size": plain["size"],
    }
