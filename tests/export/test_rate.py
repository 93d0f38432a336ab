from __future__ import annotations

import math

import pytest
import torch

from export.rate import FactorisedRate, RateController


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (0.37, -1.0), (-2.2, 1.0), (1.5, 1.5)])
def test_bits_are_those_of_a_proper_probability(mean, log_scale):
    """Under any shift by noise the probabilities of all integers sum to 1, so their mean over noise does too."""
    torch.manual_seed(0)
    rate = FactorisedRate(1)
    with torch.no_grad():
        rate.mean.fill_(mean)
        rate.log_scale.fill_(log_scale)
        integers = torch.arange(-100.0, 101.0).repeat(2000)[:, None, None, None]  # (B, 1, 1, 1)
        total = (2 ** -rate(integers)).sum().item() / 2000
    assert total == pytest.approx(1, abs=0.01)


def test_each_channel_is_summed_over_its_positions_under_its_own_scale(monkeypatch):
    """Without noise the bits of a constant are known: -log2 of the logistic's mass on [-1/2, 1/2]."""
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    rate = FactorisedRate(2)
    with torch.no_grad():
        rate.log_scale.copy_(torch.tensor([0.0, 1.0]))
        bits = rate(torch.zeros(3, 2, 4, 5))
    one = [-math.log2(math.tanh(1 / (4 * scale))) for scale in (1, math.e)]  # sigmoid(a) - sigmoid(-a) = tanh(a / 2)
    torch.testing.assert_close(bits, torch.tensor([[20 * one[0], 20 * one[1]]]).expand(3, 2))


def test_the_rate_model_learns_the_spread_of_its_channel():
    """A wide channel costs more than a narrow one, and fitting brings both near their entropy."""
    torch.manual_seed(0)
    rate = FactorisedRate(2)
    scale = torch.tensor([0.6, 3.0])[:, None, None]
    latents = scale * torch.randn(64, 2, 8, 8) + torch.tensor([0.0, 4.0])[:, None, None]
    optimiser = torch.optim.Adam(rate.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        rate(latents).mean().backward()
        optimiser.step()
    narrow, wide = (rate(latents).mean(0) / 64).tolist()  # bits per symbol
    gauss = [0.5 * math.log2(2 * math.pi * math.e * (s**2 + 1 / 12)) for s in (0.6, 3.0)]  # noise adds 1/12
    assert gauss[0] - 0.1 < narrow < gauss[0] + 0.25
    assert gauss[1] - 0.1 < wide < gauss[1] + 0.25
    assert rate.mean.tolist() == pytest.approx([0, 4], abs=0.3)


def test_latents_far_outside_cost_much_but_stay_finite():
    rate = FactorisedRate(1)
    latents = torch.full((1, 1, 1, 1), 1e4, requires_grad=True)
    rate(latents).sum().backward()
    assert latents.grad.isfinite().all()
    assert 15 < rate(latents).item() < 25


@pytest.mark.parametrize(("a", "b", "start"), [(50.0, 0.4, 1e-5), (5.0, 0.7, 1e-2), (400.0, 0.25, 1e-4)])
def test_the_controller_drives_each_layer_to_its_target(a, b, start):
    """A toy codec spends a * lambda^-b bits on a layer; two layers with other targets do not disturb each other."""
    targets = [2000.0, 600.0]
    controller = RateController(targets, start=start)
    for _ in range(3000):
        spent = [a * value**-b for value in controller.multipliers(0.5)]
        controller.update(spent, 0.5)
    assert spent == pytest.approx(targets, rel=0.05)


def test_nothing_is_pressed_or_learned_during_warm_up():
    controller = RateController([100.0], start=1e-3, warm_up=0.2)
    controller.update([5000.0], 0.1)
    assert controller.multipliers(0.19) == [0.0]
    assert controller.multipliers(0.2) == pytest.approx([1e-3])
    controller.update([5000.0], 0.3)
    assert controller.multipliers(0.3)[0] > 1e-3


def test_multipliers_are_bounded_when_a_target_cannot_be_met():
    controller = RateController([100.0, 100.0])
    for _ in range(2000):
        controller.update([1e9, 1e-9], 0.5)
    assert controller.multipliers(0.5) == pytest.approx([1.0, 1e-9])


def test_a_layer_count_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        RateController([1.0, 2.0]).update([1.0], 0.5)
