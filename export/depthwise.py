"""Depthwise convolutions whose backward pass runs in float32 on CPUs where that is faster.

oneDNN has no fast bfloat16 kernel for the gradient of a strided one's input, nor for that of 5x5 weights: four layers
took most of the backward pass of EfficientNet-Lite0 (the gradient of a 16 x 96 x 97 x 97 input: 94 ms in bfloat16, 9 ms
in float32; one core of a Xeon with AMX).
"""

from __future__ import annotations

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.sizes = stride, padding, None if bias is None else list(bias.shape)
        return nn.functional.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, bias_sizes = ctx.sizes
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        back, stated = torch.ops.aten.convolution_backward, ([1, 1], False, [0, 0], x.shape[1])
        of_x = of_weight = of_bias = None
        if need_x:  # the values of x are not read
            exact = torch.float32 if stride[0] > 1 else x.dtype
            args = (
                gradient.to(exact),
                torch.empty_like(x, dtype=exact),
                weight.to(exact),
                None,
                stride,
                padding,
                *stated,
            )
            of_x = back(*args, [True, False, False])[0].to(gradient.dtype)
        if need_weight:
            exact = torch.float32 if weight.shape[-1] > 3 else x.dtype
            args = gradient.to(exact), x.to(exact), weight.to(exact), None, stride, padding, *stated
            of_weight = back(*args, [False, True, False])[1].float()
        if need_bias and bias_sizes is not None:
            of_bias = gradient.float().sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


class Depthwise(nn.Conv2d):
    """A depthwise convolution for training: same weights and names, same values but for rounding of gradients.

    `same`: pads as TensorFlow's SAME does, like timm's `Conv2dSame`.
    """

    same = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu") and x.device.type == "cpu":
            x = x.to(torch.get_autocast_dtype("cpu"))
        if self.same:
            x = pad_same(x, self.kernel_size, self.stride)
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return super().forward(x)
        return _Backward.apply(x, self.weight, self.bias, list(self.stride), list(self.padding))


def fast_backward(net: nn.Module) -> nn.Module:
    """Puts `Depthwise`, in place, where it pays. Freeze what shall be frozen first."""
    for name, child in list(net.named_children()):
        depthwise = isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1
        if depthwise and (child.stride[0] > 1 or (child.kernel_size[0] > 3 and child.weight.requires_grad)):
            new = Depthwise(
                child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,
                groups=child.groups, bias=child.bias is not None,
            )  # fmt: skip
            new.same = isinstance(child, Conv2dSame)
            new.weight, new.bias = child.weight, child.bias
            setattr(net, name, new)
        else:
            fast_backward(child)
    return net
