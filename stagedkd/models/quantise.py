"""Fake quantisation: a network that computes in float32 what an int8 runtime computes in bytes.

Weights of convolutions and linear layers are rounded to -63..63, with a scale for each output channel: its largest
weight. Their inputs, and the outputs that a runtime must write as bytes, are rounded to 0..255 with a scale and a zero
point for the whole tensor, which `calibrate` finds. Gradients pass through the rounding as if it were not there (the
straight-through estimator, Bengio et al. 2013), and stop where a value is clipped (Jacob et al. 2018).

A convolution, the BatchNorm behind it and the ReLU behind that are one operation of a runtime, so the output is rounded
behind the last of them. That the scale of weights is their largest one makes rounding before and after folding the
BatchNorm the same.

Shape legend: B clips, C channels, T frames, H, W pixels.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagedkd.errors import TrainingError
from stagedkd.models.network import Network, in_eval

INPUT, OUTPUT = "quantised_input", "quantised_output"  # the names of the quantisers in the modules that they serve
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_SMALLEST = 1e-8  # of a scale
# Two products of a weight and an activation must fit 16 bits: x86 CPUs without VNNI add pairs of them there, and cut
# off what is larger (63 * 255 * 2 = 32,130).
MOST = 63


class Quantiser(nn.Module):
    """Rounds activations to 256 levels. While it observes, it lets them pass and widens its range."""

    scale: Tensor
    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))
        self.seen: tuple[float, float] | None = None  # least and largest value, while it observes

    def forward(self, values: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen = (min(self.seen[0], float(values.amin())), max(self.seen[1], float(values.amax())))
            return values
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero, 0, 255)

    def settle(self) -> None:
        """End the observation: the range, with 0 in it, becomes 256 levels, of which one is exactly 0."""
        assert self.seen is not None, "it observes"
        low, high = self.seen
        scale = max((high - low) / 255, _SMALLEST)
        self.scale.fill_(scale)
        self.zero.fill_(min(255, max(0, round(-low / scale))))
        self.seen = None


class QuantisedWeight:
    """Mixed into a class of modules: `weight` is the rounded one. The parameter keeps its name and its full
    precision."""

    _parameters: dict[str, Tensor | None]

    @property
    def weight(self) -> Tensor:
        return rounded_weight(own_weight(self))


def own_weight(module: Any) -> Tensor:
    """The weight of a module in full precision."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def weight_scales(weight: Tensor) -> Tensor:
    """The scale of each output channel (C,), float32."""
    return (weight.detach().flatten(1).abs().amax(1) / MOST).clamp_min(_SMALLEST)


def rounded_weight(weight: Tensor) -> Tensor:
    """The weight rounded to -63..63 times the scale of its output channel, with gradients for the weight."""
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -MOST, MOST)


@cache
def _with_rounded_weight(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantised{kind.__name__}", (QuantisedWeight, kind), {})


def plain_kind(module: nn.Module) -> type[nn.Module]:
    """The class that a module with a rounded weight had before."""
    assert isinstance(module, QuantisedWeight)
    _, _, kind, *_ = type(module).__mro__  # its own class, the mixin, the class before
    return kind


@dataclass
class _Call:
    """A call of a module: what it read and wrote, each as (id, version), since a tensor may be changed in place."""

    path: str
    module: nn.Module
    read: tuple[int, int]
    wrote: tuple[int, int] = (0, 0)


@dataclass
class Chains:
    """What `trace` finds. `weighty`: the modules with weights to round. `norms`, `ends`: of a convolution, the
    BatchNorm behind it, and the last module of the operation. `inputs`: modules whose input nothing has rounded."""

    weighty: list[str] = field(default_factory=list[str])
    norms: dict[str, str] = field(default_factory=dict[str, str])
    ends: dict[str, str] = field(default_factory=dict[str, str])
    inputs: list[str] = field(default_factory=list[str])


@contextmanager
def _recording(net: nn.Module, calls: list[_Call], alive: list[Tensor]) -> Generator[None]:
    """Inside, calls of convolutions, linear layers, BatchNorms and rectifiers are recorded. `alive` keeps the tensors,
    so that no identity is used twice."""
    handles: list[Any] = []
    for path, module in net.named_modules():
        if not isinstance(module, (*_CONVOLUTIONS, nn.Linear, _BatchNorm, *_RECTIFIERS)):
            continue

        def before(module: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
            alive.append(args[0])
            calls.append(_Call(path, module, (id(args[0]), args[0]._version)))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            alive.append(output)
            calls[-1].wrote = (id(output), output._version)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(network: Network, clip_BCTHW: Tensor) -> Chains:
    """Run the network once, in eval mode without gradients, and find its chains of convolution, BatchNorm and ReLU.
    Its modes are restored."""
    calls, alive = list[_Call](), list[Tensor]()
    with in_eval(network), _recording(network.net, calls, alive):
        network(clip_BCTHW)
    return _chains(calls)


def _chains(calls: list[_Call]) -> Chains:
    found, times = Chains(), Counter(call.path for call in calls)
    roots: dict[tuple[int, int], str] = {}  # what a chain has written so far -> its convolution
    written: dict[str, tuple[int, int]] = {}  # convolution -> what its chain writes at its end
    for call in calls:
        if isinstance(call.module, (*_CONVOLUTIONS, nn.Linear)):
            if call.path not in found.weighty:
                found.weighty.append(call.path)
            root = call.path if isinstance(call.module, _CONVOLUTIONS) else None
        else:
            root = roots.get(call.read) if times[call.path] == 1 else None
            if isinstance(call.module, _BatchNorm) and root is not None:
                root = root if found.ends[root] == root and times[root] == 1 else None
                found.norms |= {root: call.path} if root else {}
        if root is not None:
            found.ends[root], roots[call.wrote], written[root] = call.path, root, call.wrote
    rounded = set(written.values())
    for call in calls:
        if call.path in found.weighty and call.read not in rounded and call.path not in found.inputs:
            found.inputs.append(call.path)
    return found


def quantise(network: Network, clip_BCTHW: Tensor) -> None:
    """Put quantisers into a network, in place. Their ranges are those of a loaded state, or `calibrate` finds them.

    Args:
        clip_BCTHW: any clips that the network takes, on its device.
    Raises:
        TrainingError: no module of the network has weights to round.
    """
    chains = trace(network, clip_BCTHW)
    if not chains.weighty:
        message = "the network calls no convolution and no linear layer of torch, so int8 has nothing to round"
        raise TrainingError(message, hint="remove student.quantise")
    device = clip_BCTHW.device
    for path in chains.inputs:
        module = network.net.get_submodule(path)
        module.add_module(INPUT, Quantiser().to(device))
        module.register_forward_pre_hook(_round_input)
    for path in chains.ends.values():
        module = network.net.get_submodule(path)
        module.add_module(OUTPUT, Quantiser().to(device))
        module.register_forward_hook(round_output)
    for path in chains.weighty:
        module = network.net.get_submodule(path)
        module.__class__ = _with_rounded_weight(type(module))


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.get_submodule(INPUT)(args[0]), *args[1:])


def round_output(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A hook of modules that have a quantiser for their output."""
    return module.get_submodule(OUTPUT)(output)


def quantisers(network: Network) -> list[Quantiser]:
    """The quantisers of a network; [] if it is not quantised."""
    return [module for module in network.modules() if isinstance(module, Quantiser)]


def holds_quantisers(names: Iterable[str]) -> bool:
    """Whether a state with tensors of these names is that of a quantised network."""
    return any(f".{INPUT}." in name or f".{OUTPUT}." in name for name in names)


def calibrate(network: Network, clips: Iterable[Tensor]) -> None:
    """Find the ranges of the quantisers: the least and largest values over the clips, in eval mode with rounded
    weights. Its modes are restored.

    Args:
        clips: batches of the network's input (B, C, T, H, W).
    """
    found = quantisers(network)
    for quantiser in found:
        quantiser.seen = (0.0, 0.0)
    with in_eval(network):
        for clip_BCTHW in clips:
            network(clip_BCTHW)
        for quantiser in found:
            quantiser.settle()
