"""What the decoder sees of the latents in training, and what that costs: one model for each kind of bottleneck.

Only estimates that give gradients; the coded size is measured with the integer tables counted after training. Every
model offers `shown` (what the decoder sees), its call (bits in the objective) and `coded` (bits that the controller
steers by); `steered` says whether bits can be bought at all. `group`: the processes that train together, each of which
draws its own part of a batch's noise.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from export.distributed import ALONE


def round_through(latents: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Rounding and clipping with the gradient of the identity (straight-through, Theis et al. 2017)."""
    return latents + (latents.round().clamp(low, high) - latents).detach()


class FactorisedRate(nn.Module):
    """Bits of each channel under a logistic of learned mean and scale (Ballé et al. 2017, arXiv 1611.01704, with a
    simpler density). Latents enter with uniform noise in place of rounding."""

    steered = True
    group = ALONE

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, C, h, w) real → bits (B, C), the sum over positions of -log2 P[x - 1/2, x + 1/2]."""
        noisy = latents + self.group.noise(torch.rand_like, latents) - 0.5
        centred = (noisy - self.mean[:, None, None]).abs()
        inverse = (-self.log_scale.clamp(-4, 4)).exp()[:, None, None]
        upper = torch.sigmoid((0.5 - centred) * inverse)
        lower = torch.sigmoid((-0.5 - centred) * inverse)
        probability = (upper - lower).clamp_min(1e-6)
        return -probability.log().sum((2, 3)) / math.log(2)

    def shown(self, latents: torch.Tensor, low: int, high: int, sampled: bool) -> torch.Tensor:
        """Latents (B, C, h, w) as the decoder sees them. sampled: the encoder still learns (see `PosteriorRate`)."""
        return round_through(latents, low, high)

    def coded(self, latents: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Bits (B, C) that symbols of these latents would take; `bits`: what the call gave for them."""
        return bits


class FixedRate(FactorisedRate):
    """For symbols whose rate is built in (a fixed transform, finite scalar quantisation): only watches, for the log."""

    steered = False

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return super().forward(latents.detach())


class PosteriorRate(nn.Module):
    """The rate of a β-VAE (Higgins et al. 2017): KL(q(z | x) || p(z)) of a Gaussian posterior around each latent.

    The latents are the posterior's means. Its width depends on them (a linear map), about a geometric mean per channel
    of 1 / sqrt(12) of a step: that is what "a step tied to the posterior's width" means here, for the noise of rounding
    to whole steps then has the power of the noise that the decoder was trained under. Scale costs nothing (decoder and
    prior follow it), so fixing the width instead of the prior's gives the same model as a prior N(0, 1). The prior is a
    Gaussian of learned mean and width per channel. The decoder sees reparameterised samples (Kingma & Welling 2014)
    while the encoder learns, rounded means afterwards.

    KL is what bits-back coding would spend. Rounded means take about a quarter bit more per busy latent (the
    space-filling loss, log2(2 pi e / 12) / 2), so the controller steers by `coded`, and targets mean the same bytes as
    in every other family.
    """

    steered = True
    group = ALONE
    LOG_WIDTH = -0.5 * math.log(12)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.width = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.width.weight)
        nn.init.zeros_(self.width.bias)

    def log_width(self, latents: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of the posterior's standard deviation, (B, C, h, w)."""
        wider = self.width(latents.detach())
        return self.LOG_WIDTH + (wider - wider.mean((0, 2, 3), keepdim=True)).clamp(-3, 3)

    def shown(self, latents: torch.Tensor, low: int, high: int, sampled: bool) -> torch.Tensor:
        """Latents (B, C, h, w) as the decoder sees them: samples of the posterior, or rounded means."""
        if not sampled:
            return round_through(latents, low, high)
        return latents + self.log_width(latents).exp() * self.group.noise(torch.randn_like, latents)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Means (B, C, h, w) → KL in bits (B, C), the sum over positions."""
        log_width, log_scale = self.log_width(latents), self._log_scale()
        square = ((2 * log_width).exp() + (latents - self.mean[:, None, None]).square()) * (-2 * log_scale).exp()
        return (log_scale - log_width + 0.5 * square - 0.5).sum((2, 3)) / math.log(2)

    @torch.no_grad()
    def coded(self, latents: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Bits (B, C) of the rounded means under the prior's mass on each step."""
        centred, scale = latents.round() - self.mean[:, None, None], self._log_scale().exp()
        mass = torch.special.ndtr((centred + 0.5) / scale) - torch.special.ndtr((centred - 0.5) / scale)
        return -mass.clamp_min(1e-6).log2().sum((2, 3))

    def _log_scale(self) -> torch.Tensor:
        return self.log_scale.clamp(-4, 4)[:, None, None]


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
