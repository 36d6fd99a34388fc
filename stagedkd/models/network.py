"""`Network`: any video classifier as a sequence of named blocks and a head, run only as far as needed.

The wrapped module keeps its parameter names: weights are saved and loaded as `network.net.state_dict()`.

Shape legend: B clips, C channels, T frames, H, W pixels, N classes, D token width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = Any  # the output of a block: a tensor, or tokens with their grid
EMBEDDING = ".embedding"  # the tap of the pooled feature in front of the head; no module can have this name
POSITIONS = "logits of positions"  # the name of that tap; see `Network.run`


def mean_over_positions(feat_BCTHW: Tensor) -> Tensor:
    """Return the mean feature of each clip (B, C); a feature without positions stays as it is."""
    return feat_BCTHW if feat_BCTHW.ndim == 2 else feat_BCTHW.flatten(2).mean(2)


@dataclass(frozen=True)
class Anatomy:
    """How a family of networks is cut. It holds names, never modules, so that a deep copy of a network is independent.

    blocks: block name -> paths of its modules in the net, in order. head: paths of the head's modules.
    step: (module, state) -> state. finish: (net, state) -> logits (B, N). to_map: state -> (B, C, T, H, W).
    input_problem: (T, H, W) -> why the network cannot take clips of this size, or "".
    from_map: (B, C, T, H, W) -> state behind the same block; None if a map does not hold the whole state.
    embed: (net, state) -> the pooled feature (B, C) in front of the head; None: the mean of the map over its positions.
    positions: (net, state) -> the logits of every position of the last map (B, N, T, H, W), whose mean is `finish`;
    None unless the head is the mean over positions and a linear layer.
    """

    blocks: Mapping[str, tuple[str, ...]]
    head: tuple[str, ...]
    finish: Callable[[nn.Module, State], Tensor]
    step: Callable[[nn.Module, State], State] = lambda module, state: module(state)
    to_map: Callable[[State], Tensor] = lambda state: state
    input_problem: Callable[[tuple[int, int, int]], str] = lambda _: ""
    from_map: Callable[[Tensor], State] | None = lambda feat: feat
    embed: Callable[[nn.Module, State], Tensor] | None = None
    positions: Callable[[nn.Module, State], Tensor] | None = None


class Network(nn.Module):
    """A network with named blocks and a head."""

    def __init__(self, net: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.net, self.anatomy = net, anatomy

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in order, without the head."""
        return tuple(self.anatomy.blocks)

    @property
    def head_modules(self) -> tuple[nn.Module, ...]:
        """The modules of the head."""
        return tuple(self.net.get_submodule(path) for path in self.anatomy.head)

    def block_modules(self, name: str) -> tuple[nn.Module, ...]:
        """Return the modules of a block. Raises KeyError: there is no such block."""
        return tuple(self.net.get_submodule(path) for path in self.anatomy.blocks[name])

    def block(self, name: str, state: State) -> State:
        """Run one block on the output of the block before it."""
        for module in self.block_modules(name):
            state = self.anatomy.step(module, state)
        return state

    def run(
        self,
        clip_BCTHW: Tensor,
        upto: str | None = None,
        taps: Sequence[str] = (),
        head: bool = True,
        after: str | None = None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the network only as far as needed.

        Args:
            clip_BCTHW: normalised float clips.
            upto: run at least to this block. taps: blocks whose feature maps are returned; `EMBEDDING` returns the
                pooled feature in front of the head, (B, C, 1, 1, 1); `POSITIONS`, with `head`: also the logits of every
                position of the last map, as a map. head: compute logits. after: run only the blocks behind this one, on
                its map in the place of the clips.
        Returns:
            feature maps (B, C, T, H, W) by tap, and logits (B, N) or None.
        Raises:
            ValueError: the network cannot take clips of this size, a block is unknown, or positions have no logits.
        """
        names = self.blocks
        needed = [tap for tap in (*taps, upto, after) if tap not in (EMBEDDING, POSITIONS, None)]
        unknown = [name for name in needed if name not in names]
        if unknown:
            raise ValueError(f"no block '{unknown[0]}'; the blocks are {', '.join(names)}")
        if after is None and (problem := self.anatomy.input_problem(_grid(clip_BCTHW))):
            raise ValueError(problem)
        whole = head or EMBEDDING in taps
        last = len(names) - 1 if whole else max((names.index(name) for name in needed), default=-1)
        state = clip_BCTHW if after is None else self._state_after(clip_BCTHW)
        maps: dict[str, Tensor] = {}
        for name in names[0 if after is None else names.index(after) + 1 : last + 1]:
            state = self.block(name, state)
            if name in taps:
                maps[name] = self.anatomy.to_map(state)
        if EMBEDDING in taps:
            maps[EMBEDDING] = self.embedding(state)[:, :, None, None, None]
        if POSITIONS in taps and head:
            if self.anatomy.positions is None:
                raise ValueError("the head is not the mean over positions and a linear layer: positions have no logits")
            maps[POSITIONS] = self.anatomy.positions(self.net, state)
        return maps, self.anatomy.finish(self.net, state) if head else None

    def embedding(self, state: State) -> Tensor:
        """Return the pooled feature (B, C) in front of the head, of the output of the last block."""
        embed, to_map = self.anatomy.embed, self.anatomy.to_map
        return mean_over_positions(to_map(state)) if embed is None else embed(self.net, state)

    def run_from(self, feat_BCTHW: Tensor, after: str) -> Tensor:
        """Return the logits (B, N) of the later blocks and the head, of a map in the place of block `after`'s.

        Raises:
            ValueError: the network cannot run from a map (`anatomy.from_map`), or the block is unknown.
        """
        logits = self.run(feat_BCTHW, after=after)[1]
        assert logits is not None
        return logits

    def _state_after(self, feat_BCTHW: Tensor) -> State:
        """Return the state that a map stands for. Raises ValueError: a map does not hold the whole state."""
        if self.anatomy.from_map is None:
            raise ValueError("this network cannot run from a feature map, which lacks its class token")
        return self.anatomy.from_map(feat_BCTHW)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Return logits (B, N)."""
        logits = self.run(clip_BCTHW)[1]
        assert logits is not None
        return logits


def _grid(feat_BCTHW: Tensor) -> tuple[int, int, int]:
    return feat_BCTHW.shape[2], feat_BCTHW.shape[3], feat_BCTHW.shape[4]


def linear_positions(net: nn.Module, state_BCTHW: Tensor) -> Tensor:
    """The logits of every position of a map (B, N, T, H, W), by the linear layer `fc` of the net."""
    return net.get_submodule("fc")(state_BCTHW.movedim(1, -1)).movedim(-1, 1)


def at_least_two(clip_BCTHW: Tensor) -> Tensor:
    """Return the clips; on the CPU a single clip twice, since torch's eager Conv3d takes a slow kernel for one clip
    (docs/findings.md). The second output is dropped by the caller."""
    return torch.cat([clip_BCTHW, clip_BCTHW]) if len(clip_BCTHW) == 1 and clip_BCTHW.is_cpu else clip_BCTHW


def channels_last(network: Network) -> None:
    """Store the weights of 3-D and 2-D convolutions channels last, the layout of tensor cores. `Module.to` refuses a
    network that has tensors of both ranks. For weights of 2-D convolutions this is `to`, since `contiguous` would leave
    depthwise and pointwise ones as they are, and slow (docs/findings.md, docs/decisions/0043)."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


@contextmanager
def in_eval(network: nn.Module) -> Generator[None]:
    """Inside, the network is in eval mode without gradients; afterwards the modes of its modules are restored."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
