from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from export.depthwise import Depthwise, fast_backward


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x)
    out.float().square().mean().backward()
    return [out.detach(), x.grad, *(p.grad for p in net.parameters() if p.requires_grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "kernel", "stride"), [(nn.Conv2d, 3, 2), (nn.Conv2d, 5, 1), (Conv2dSame, 5, 2)])
def test_values_and_gradients_are_those_of_the_plain_convolution(kind, kernel, stride, dtype):
    torch.manual_seed(0)
    plain = nn.Sequential(kind(8, 8, kernel, stride, kernel // 2, groups=8)).to(dtype)
    fast = fast_backward(copy.deepcopy(plain))
    assert isinstance(fast[0], Depthwise)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 8, 15, 15).to(dtype)
    for got, wanted in zip(gradients(fast, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0.02, atol=0.01 * wanted.abs().max().item())


def test_autocast_reaches_it():
    net = fast_backward(nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4)))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(1, 4, 9, 9))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32


def test_what_is_fast_already_stays():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(4, 4, 5, groups=4).requires_grad_(False)
    )
    assert not any(isinstance(module, Depthwise) for module in fast_backward(net).modules())
