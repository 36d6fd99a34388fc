"""Shapes, parameters and FLOPs of a network, measured on the meta device, before the network exists.

Shape legend: C channels, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stagedkd.models.network import Network, State
from stagedkd.spec.schema import Size, sides


@dataclass(frozen=True)
class NetworkShape:
    """The measurements of a network.

    params: number of parameters with the head. trunk_params: without it. flops: of one clip (2 x multiply-adds of
    convolutions and matrix products), head included. maps: the shape (C, T, H, W) of the map behind each block.
    block_flops: the FLOPs of each block. width: the channels of the pooled feature in front of the head.
    from_maps: whether it can run from a feature map (`Network.run_from`).
    """

    params: int
    trunk_params: int
    flops: int
    maps: Mapping[str, tuple[int, ...]]
    block_flops: Mapping[str, int]
    width: int = 0
    from_maps: bool = True

    def flops_of(self, first: str | None, last: str | None, head: bool) -> int:
        """Return FLOPs of one clip from block `first` (None: the first) to `last` (None: none), or through the head."""
        names = list(self.block_flops)
        begin = names.index(first) if first else 0
        end = len(names) if head else names.index(last) + 1 if last else 0
        blocks = sum(self.block_flops[name] for name in names[begin:end])
        return blocks + (self.flops - sum(self.block_flops.values()) if head else 0)


def measure(build: Callable[[], Network], frames: int, size: Size) -> NetworkShape:
    """Build a network on the meta device and run one clip of `frames` and `size` (as in `Clip.size`) through it.

    Raises:
        ValueError: the network cannot take clips of this size.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build().eval()
        clip = torch.empty(1, 3, frames, *sides(size))
    maps: dict[str, Tensor] = {}
    block_flops: dict[str, int] = {}
    network.run(clip, head=False)  # raises ValueError for sizes that the network cannot take
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        state: State = clip
        for name in network.blocks:
            state = network.block(name, state)
            maps[name] = network.anatomy.to_map(state)
            block_flops[name] = int(counter.get_total_flops()) - sum(block_flops.values())
        network.anatomy.finish(network.net, state)
    with torch.no_grad():
        width = network.embedding(state).shape[1]
    params = sum(p.numel() for p in network.parameters())
    heads = [m for m in network.head_modules if not type(m).__name__.startswith("LayerNorm")]
    head = sum(p.numel() for module in heads for p in module.parameters())
    shapes = {name: tuple(feat_BCTHW.shape[1:]) for name, feat_BCTHW in maps.items()}
    from_maps = network.anatomy.from_map is not None
    return NetworkShape(params, params - head, int(counter.get_total_flops()), shapes, block_flops, width, from_maps)
