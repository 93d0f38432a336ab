"""The training-time rate: a factorised discretised-logistic model per channel.

Only an estimate that gives gradients; the coded size is measured with the integer tables counted after training.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class FactorisedRate(nn.Module):
    """Bits of each channel under a logistic of learned mean and scale (Ballé et al. 2017, arXiv 1611.01704, with a
    simpler density). Latents enter with uniform noise in place of rounding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, C, h, w) real → bits (B, C), the sum over positions of -log2 P[x - 1/2, x + 1/2]."""
        noisy = latents + torch.rand_like(latents) - 0.5
        centred = (noisy - self.mean[:, None, None]).abs()
        inverse = (-self.log_scale.clamp(-4, 4)).exp()[:, None, None]
        upper = torch.sigmoid((0.5 - centred) * inverse)
        lower = torch.sigmoid((-0.5 - centred) * inverse)
        probability = (upper - lower).clamp_min(1e-6)
        return -probability.log().sum((2, 3)) / math.log(2)


class RateController:
    """Finds each layer's Lagrange multiplier: raised while a layer spends more than its target, lowered while less.

    Works on log lambda with a small integral gain, so that the final rates are the asked ones whatever the distortion's
    scale. `warm_up` is the share of training during which all multipliers are zero (rate pressure from the first step
    collapses the latents).
    """

    def __init__(self, target_bits: list[float], start: float = 1e-5, gain: float = 0.02, warm_up: float = 0.1) -> None:
        self.target_bits, self.gain, self.warm_up = target_bits, gain, warm_up
        self.log_lambda = [math.log(start)] * len(target_bits)

    def multipliers(self, progress: float) -> list[float]:
        if progress < self.warm_up:
            return [0.0] * len(self.target_bits)
        return [math.exp(value) for value in self.log_lambda]

    def update(self, bits: list[float], progress: float) -> None:
        if progress < self.warm_up:
            return
        for layer, (spent, target) in enumerate(zip(bits, self.target_bits, strict=True)):
            error = max(-1.0, min(1.0, math.log(spent / target)))
            self.log_lambda[layer] = min(0.0, max(math.log(1e-9), self.log_lambda[layer] + self.gain * error))
