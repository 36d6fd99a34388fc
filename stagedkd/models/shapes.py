"""What a network is before it exists: shapes, parameters and FLOPs, measured on the meta device.

Shape legend: C channels, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from stagedkd.models.network import Network


@dataclass(frozen=True)
class NetworkShape:
    """`params` with head, `trunk_params` without; `flops` of one clip (2 x multiply-adds of convolutions and matrix
    products, head included); `maps` the (C, T, H, W) behind each block."""

    params: int
    trunk_params: int
    flops: int
    maps: Mapping[str, tuple[int, ...]]


def measure(build: Callable[[], Network], frames: int, size: int) -> NetworkShape:
    """Build on the meta device and run one clip of `frames` x `size` x `size` through.

    Raises:
        ValueError: the network cannot take clips of this size.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build().eval()
        clip = torch.empty(1, 3, frames, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps, _ = network.run(clip, taps=network.blocks)
    params = sum(p.numel() for p in network.parameters())
    heads = [m for m in network.head_modules if not type(m).__name__.startswith("LayerNorm")]
    head = sum(p.numel() for module in heads for p in module.parameters())
    shapes = {name: tuple(feat_BCTHW.shape[1:]) for name, feat_BCTHW in maps.items()}
    return NetworkShape(params, params - head, int(counter.get_total_flops()), shapes)
