"""A quantised network in the forms that exporters take: torch has no way to export its fake quantisation as it is.

Shape legend: B clips, C channels, T frames, H, W pixels.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagedkd.models.network import Network
from stagedkd.models.quantise import (
    MOST,
    OUTPUT,
    QuantisedWeight,
    Quantiser,
    own_weight,
    plain_kind,
    round_output,
    rounded_weight,
    trace,
    weight_scales,
)


class _Values(nn.Module):
    """A settled quantiser in plain arithmetic, for torch.export."""

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.scale, self.zero = float(quantiser.scale), int(quantiser.zero)

    def forward(self, values: Tensor) -> Tensor:
        levels = (torch.round(values * (1 / self.scale)) + self.zero).clamp(0, 255)
        return (levels - self.zero) * self.scale


class _Operators(_Values):
    """A settled quantiser as the two operators that exporters know."""

    def forward(self, values: Tensor) -> Tensor:
        how = (self.scale, self.zero, 0, 255, torch.uint8)
        operators = torch.ops.quantized_decomposed
        return operators.dequantize_per_tensor(operators.quantize_per_tensor(values, *how), *how)


class _BytesWeight(QuantisedWeight):
    """Mixed into a class of modules: `weight` is made of bytes by an operator that exporters know."""

    @property
    def weight(self) -> Tensor:
        stored: Any = self
        how = (stored.weight_scales, stored.weight_zeros, 0, -MOST, MOST, torch.int8)
        return torch.ops.quantized_decomposed.dequantize_per_channel(stored.weight_bytes, *how)


@cache
def _with_bytes(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Bytes{kind.__name__}", (_BytesWeight, kind), {})


def _quantised(network: Network) -> list[Any]:
    """The modules whose weights are rounded."""
    return [module for module in network.modules() if isinstance(module, QuantisedWeight)]


def to_values(network: Network) -> None:
    """Change a quantised network, in place, to plain arithmetic that torch.export takes."""
    for module in _quantised(network):
        weight = own_weight(module)
        weight.data = rounded_weight(weight).detach()
        module.__class__ = plain_kind(module)
    _replace_quantisers(network, _Values)


def to_operators(network: Network, clip_BCTHW: Tensor) -> None:
    """Change a quantised network, in place, to bytes and the operators that ONNX knows. BatchNorms are folded."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401 (registers the operators)

    net = network.net
    for path, norm in trace(network, clip_BCTHW).norms.items():
        _fold(net.get_submodule(path), net.get_submodule(norm))
        parent, _, name = norm.rpartition(".")
        passed = nn.Identity()
        if (quantiser := net.get_submodule(norm)._modules.get(OUTPUT)) is not None:
            passed.add_module(OUTPUT, quantiser)
            passed.register_forward_hook(round_output)
        setattr(net.get_submodule(parent), name, passed)
    for module in _quantised(network):
        _store_bytes(module)
    _replace_quantisers(network, _Operators)


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Fold a BatchNorm in eval mode into the convolution before it."""
    assert isinstance(convolution, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    weight = own_weight(convolution)
    with torch.no_grad():
        factors = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        folded = bias * factors + (0 if norm.bias is None else norm.bias)
        weight.data = weight * factors.view(-1, *[1] * (weight.ndim - 1))
        convolution.bias = nn.Parameter(folded)


def _store_bytes(module: nn.Module) -> None:
    weight = own_weight(module).detach()
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    levels = (rounded_weight(weight) / scales.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
    module.register_buffer("weight_bytes", levels.contiguous())
    module.register_buffer("weight_scales", scales)
    module.register_buffer("weight_zeros", zeros)
    module.__class__ = _with_bytes(plain_kind(module))


def _replace_quantisers(network: Network, kind: type[_Values]) -> None:
    for module in list(network.modules()):
        named: Mapping[str, nn.Module | None] = dict(module._modules)
        for name, child in named.items():
            if isinstance(child, Quantiser):
                module.add_module(name, kind(child))
