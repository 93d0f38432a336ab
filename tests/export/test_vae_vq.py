"""Families `vae` and `vq`: the bottleneck is what differs from `conv`."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from export.families import FAMILIES
from export.families.front import normalise
from export.families.vq import LEVELS
from export.rate import FixedRate, PosteriorRate
from tests.export.photographs import crops

pytestmark = pytest.mark.slow


def drawn(channels: int = 3, count: int = 32) -> torch.Tensor:
    return 2 * torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rate() -> PosteriorRate:
    """A prior that is not the standard one, and a posterior whose width follows the latent."""
    rate = PosteriorRate(3)
    with torch.no_grad():
        rate.mean.copy_(torch.tensor([0.0, 0.5, -1.0]))
        rate.log_scale.copy_(torch.tensor([0.7, 0.2, 1.0]))
        rate.width.weight.copy_(0.2 * torch.eye(3)[:, :, None, None])
    return rate


def test_the_rate_is_the_divergence_of_two_gaussians(rate):
    latents = drawn()
    posterior = Normal(latents, rate.log_width(latents).exp())
    prior = Normal(rate.mean[:, None, None], rate.log_scale.exp()[:, None, None])
    torch.testing.assert_close(rate(latents), kl_divergence(posterior, prior).sum((2, 3)) / math.log(2))


def test_the_step_is_tied_to_the_posteriors_width(rate):
    """Rounding to whole steps is noise of power 1/12: the geometric mean of the posterior's, in every channel."""
    mean_log = rate.log_width(drawn()).mean((0, 2, 3))
    torch.testing.assert_close((2 * mean_log).exp(), torch.full((3,), 1 / 12), rtol=1e-4, atol=0)
    noise = rate.shown(torch.zeros(400, 3, 8, 8), -15, 15, sampled=True)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_means_are_rounded_once_the_encoder_rests(rate):
    latents = drawn().requires_grad_()
    shown = rate.shown(latents, -2, 2, sampled=False)
    torch.testing.assert_close(shown, latents.detach().round().clamp(-2, 2))
    shown.sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))


def test_coded_bits_are_those_of_rounded_means_and_exceed_the_divergence():
    """A busy latent: a quarter bit over KL, the space-filling loss of scalar steps; and near the true entropy."""
    rate = PosteriorRate(1)
    with torch.no_grad():
        rate.log_scale.fill_(math.log(5))
    latents = 5 * torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    kl = rate(latents)
    coded = rate.coded(latents, kl)
    symbols = latents.numel()
    assert (coded.sum() - kl.sum()).item() / symbols == pytest.approx(
        0.5 * math.log2(2 * math.pi * math.e / 12), abs=0.03
    )
    assert coded.sum().item() / symbols == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * 25), abs=0.05)
    assert not coded.requires_grad


def test_gradients_reach_means_prior_and_width(rate):
    latents = drawn().requires_grad_()
    (rate(latents).mean() + rate.shown(latents, -15, 15, sampled=True).square().mean()).backward()
    for parameter in (latents, rate.mean, rate.log_scale, rate.width.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_a_built_in_rate_only_watches():
    latents = drawn().requires_grad_()
    rate = FixedRate(3)
    rate(latents).sum().backward()
    assert latents.grad is None
    assert rate.log_scale.grad.abs().sum() > 0


def test_vae_is_conv_but_for_the_bottleneck():
    conv, vae = FAMILIES["conv"], FAMILIES["vae"]
    assert (vae.layers, vae.rates, vae.layer_bytes) == (conv.layers, conv.rates, conv.layer_bytes)
    for net in ("analysis", "synthesis"):
        ours, theirs = (getattr(family, net)().state_dict() for family in (vae, conv))
        assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}


def test_tokens_stay_within_their_levels_and_use_all_of_them():
    vq = FAMILIES["vq"]
    analysis = vq.analysis()
    x = normalise(torch.from_numpy(crops(60, size=(96, 96))).permute(0, 3, 1, 2))
    analysis.initialise(x)
    with torch.inference_mode():
        symbols = analysis(x).round()
        loud = analysis(x.sign() * 50).round()
    assert (vq.low, vq.high) == (-(LEVELS // 2), LEVELS // 2)
    for each in (symbols, loud):
        assert (each.min().item(), each.max().item()) == (vq.low, vq.high)
    shares = torch.stack([(symbols == level).float().mean((0, 2, 3)) for level in range(vq.low, vq.high + 1)])
    assert (shares.max(0).values < 0.9).all()  # no channel says nothing


def test_the_bytes_of_tokens_are_the_size_of_their_codebooks():
    vq = FAMILIES["vq"]
    for (start, stop), size in zip(vq.layers, vq.layer_bytes):
        assert 14 * 14 * (stop - start) * math.log2(LEVELS) / 8 == pytest.approx(size, rel=0.01)
