"""Synthesis for the family `still`: the picture that AV1 kept, with or without a network that restores it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from synthesis.grain import grain_pattern


class Grain(nn.Module):
    """Adds noise of a fixed pattern to RGB in [0, 1], the same to all three colours; it has no weights.

    Networks read photographs, and photographs have grain: on the smooth pictures that a codec leaves at a few hundred
    bytes they fire wrongly. grain: standard deviation for each rung, in 1/255; height, width: of the view; stored:
    whether both are part of the state (of nets that have weights: their ONNX graph then serves other rungs too).
    """

    def __init__(self, grain: list[float], height: int, width: int, stored: bool = False) -> None:
        super().__init__()
        self.register_buffer("grain", torch.tensor(grain, dtype=torch.float32) / 255, persistent=stored)
        self.register_buffer("pattern", torch.from_numpy(grain_pattern(height, width)), persistent=stored)

    def forward(self, x: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return x + self.grain.index_select(0, n_layers - 1)[:, None, None, None] * self.pattern


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

    One network for all rungs: a U-Net (Ronneberger et al. 2015) on 2x2, 4x4 and 8x8 blocks of pixels (H and W are
    multiples of 8), told each picture's size and quality (FiLM, Perez et al. 2018). It adds what it believes is
    missing, times the rung's `strength`: 0 leaves the decoded picture alone, which is right where guesses do harm.

    rungs: [pixels of a side, quality] of each; strength: of each, 0 to 1; widths: channels at 1/2, 1/4 and 1/8 of the
    resolution; blocks: residual blocks at 1/4 and 1/8; grain, size: as of `StillSynthesis`, added at the end.
    """

    def __init__(
        self,
        rungs: list[list[int]],
        strength: list[float],
        widths: list[int],
        blocks: list[int],
        grain: list[float],
        size: list[int],
    ) -> None:
        super().__init__()
        if not len(rungs) == len(strength) == len(grain):
            raise ValueError("each rung needs a strength and a grain")
        w0, w1, w2 = widths
        n1, n2 = blocks
        self.inp = nn.Conv2d(12, w0, 3, padding=1)
        self.d1 = nn.Conv2d(w0, w1, 2, stride=2)
        self.m1 = nn.ModuleList([Residual(w1) for _ in range(n1)])
        self.d2 = nn.Conv2d(w1, w2, 2, stride=2)
        self.m2 = nn.ModuleList([Residual(w2) for _ in range(n2)])
        self.cond = nn.Sequential(nn.Linear(2, 32), nn.ReLU())
        self.f1, self.f2 = nn.Linear(32, 2 * w1), nn.Linear(32, 2 * w2)
        self.u2 = nn.Conv2d(w2, w1 * 4, 1)
        self.k1 = Residual(w1)
        self.u1 = nn.Conv2d(w1, w0 * 4, 1)
        self.out = nn.Conv2d(w0, 12, 3, padding=1)
        conditions = torch.tensor([condition(size, quality) for size, quality in rungs])  # (rungs, 2)
        self.register_buffer("conditions", conditions)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float32))
        self.grain = Grain(grain, *size, stored=True)
        for layer in (self.out, self.f1, self.f2):  # at first nothing is added
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
        told = self.cond(conditions)
        h = F.relu(self.inp(F.pixel_unshuffle(x - 0.5, 2) * 2))  # (B, w0, H/2, W/2)
        g = _film(self.d1(h), self.f1(told))  # (B, w1, H/4, W/4)
        for block in self.m1:
            g = block(g)
        e = _film(self.d2(F.relu(g)), self.f2(told))  # (B, w2, H/8, W/8)
        for block in self.m2:
            e = block(e)
        g = self.k1(g + F.pixel_shuffle(self.u2(e), 2))
        h = h + F.pixel_shuffle(self.u1(F.relu(g)), 2)
        return F.pixel_shuffle(self.out(h), 2)


def _film(x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w), and (B, 2 C) that scales and shifts its channels."""
    scale, shift = told[:, :, None, None].chunk(2, 1)
    return x * (1 + scale) + shift


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
        "widths": [24, 48, 96],
        "blocks": [1, 2],
        "grain": plain["grain"],
        "size": plain["size"],
    }
