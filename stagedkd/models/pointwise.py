"""A convolution that mixes channels alone (1x1x1), whose gradients have the same bits on more machines.

Shape legend: B clips, C and D channels in and out, T frames, H, W positions.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTION = ([1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1)  # stride, padding, dilation, ..., groups


class Pointwise(nn.Conv3d):
    """`nn.Conv3d` with kernel 1 and stride 1, with the gradient of its weights as a product of matrices, summed over
    clips. oneDNN's kernel for that gradient sums positions in pieces whose number follows from the first-level cache,
    so that processors which differ in nothing else would train other students (docs/decisions/0032)."""

    def __init__(self, channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Mix channels: (B, C, T, H, W) to (B, D, T, H, W)."""
        feat_BCTHW, weight_DC111, bias_D, kind = input, self.weight, self.bias, input.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            feat_BCTHW, weight_DC111 = feat_BCTHW.to(dtype), weight_DC111.to(dtype)
            bias_D = None if bias_D is None else bias_D.to(dtype)
        return _Mix.apply(feat_BCTHW, weight_DC111, bias_D)


class _Mix(torch.autograd.Function):
    """The convolution and its gradients."""

    @staticmethod
    def forward(ctx: Any, feat_BCTHW: Tensor, weight_DC111: Tensor, bias_D: Tensor | None) -> Tensor:
        ctx.save_for_backward(feat_BCTHW, weight_DC111)
        return torch.conv3d(feat_BCTHW, weight_DC111, bias_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BDTHW: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        feat_BCTHW, weight_DC111 = ctx.saved_tensors
        of_feat, of_weight, of_bias = ctx.needs_input_grad
        grads: list[Tensor | None] = [None, None, None]
        if of_feat:
            known = (grad_BDTHW, feat_BCTHW, weight_DC111, None, *CONVOLUTION)
            grads[0] = torch.ops.aten.convolution_backward(*known, [True, False, False])[0]
        if of_weight:
            products_BDC = torch.bmm(grad_BDTHW.flatten(2), feat_BCTHW.flatten(2).mT)
            grads[1] = products_BDC.sum(0).view_as(weight_DC111)
        if of_bias:
            grads[2] = grad_BDTHW.sum((0, 2, 3, 4))
        return grads[0], grads[1], grads[2]
