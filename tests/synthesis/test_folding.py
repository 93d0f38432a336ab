from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from export.teachers import load_lite0
from synthesis.folding import fold_batch_norm


def unsettled(channels, **kwargs):
    """A batch normalisation whose statistics and affine part all matter; a fresh one is nearly the identity."""
    norm = BatchNormAct2d(channels, **kwargs)
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if name in ("weight", "running_var") else -0.5))
    return norm


def counts(net):
    return sum(isinstance(each, nn.BatchNorm2d) for each in net.modules())


def test_lite0_folded_answers_as_before():
    net = load_lite0()
    folded = fold_batch_norm(copy.deepcopy(net)).eval()
    assert counts(net) > 40
    assert counts(folded) == 0
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("act", ["relu", "relu6", "silu"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_a_pair_is_folded_with_its_own_statistics_and_activation(act, groups, bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups, bias=bias), unsettled(8, eps=1e-2, act_layer=act)).eval()
    x = 3 * torch.randn(2, 4, 9, 9)
    wanted = net(x)
    folded = fold_batch_norm(net)
    assert counts(folded) == 0
    assert not isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_norm_without_a_convolution_right_before_it_is_kept():
    """Folding into a convolution across another module would change the answer."""
    torch.manual_seed(0)
    net = nn.Sequential(unsettled(4), nn.Conv2d(4, 4, 1), nn.ReLU(), unsettled(4), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(2, 4, 5, 5)
    wanted = net(x)
    assert counts(fold_batch_norm(net)) == 2
    torch.testing.assert_close(net(x), wanted)


def test_plain_norms_are_folded_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 9)
    wanted = net(x)
    torch.testing.assert_close(fold_batch_norm(net)(x), wanted, rtol=1e-4, atol=1e-5)
    assert counts(net) == 0
