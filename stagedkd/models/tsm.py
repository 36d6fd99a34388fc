"""Temporal shift module over torchvision's 2-D networks (Lin, Gan and Han, ICCV 2019, arXiv 1811.08383).

The networks are torchvision's, with the same parameter names: the shift is not a module but a function that is applied
to the input of each residual branch.

Shape legend: B clips, T frames, F = B * T frames of all clips, C channels, H, W pixels, N classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.resnet import BasicBlock, Bottleneck

from stagedkd.models.network import Anatomy, Network, State, linear_positions
from stagedkd.spec.schema.networks.tsm import TSM

# For each block after the stem (features.0), the index in `features` behind its last module.
BLOCK_ENDS = {
    "mobilenet_v3_small": (2, 4, 9, 13),
    "mobilenet_v3_large": (2, 4, 7, 13, 17),
    "mobilenet_v2": (2, 4, 7, 14, 19),
}


def tsm(backbone: str, shift: float, classes: int) -> Network:
    """Build a TSM network, randomly initialised, with `classes` outputs.

    Args:
        backbone: a key of `spec.schema.networks.tsm.TSM`.
        shift: the fraction of channels that moves each way, in [0, 0.5]; the paper's is 1/8.
    """
    net = cast(nn.Module, get_model(backbone, weights=None, num_classes=classes))
    resnet = TSM[backbone].family == "resnet2d"
    paths = _resnet_paths(net) if resnet else _mobilenet_paths(backbone)
    head = "fc" if resnet else "classifier"
    step, positions = partial(_step, fraction=shift), _positions if resnet else None
    finish = partial(_finish, head=head)
    return Network(net, Anatomy(paths, (head,), finish, step, _map, from_map=_state, positions=positions))


def temporal_shift(x_FCHW: Tensor, frames: int, fraction: float) -> Tensor:
    """Move the first `floor(fraction * C)` channels one frame back in time and the next as many one frame forward, so
    that each frame sees the next and the previous one; zeros move in at the ends (section 3 of the paper).

    Args:
        x_FCHW: the frames of all clips; those of one clip follow each other.
        frames: T.
        fraction: in [0, 0.5].
    """
    moved = int(fraction * x_FCHW.shape[1] + 1e-9)  # 0.29 * 100 is just below 29
    if moved == 0:
        return x_FCHW
    x_BTCHW = x_FCHW.unflatten(0, (-1, frames))
    later, earlier, unmoved = x_BTCHW.split((moved, moved, x_FCHW.shape[1] - 2 * moved), dim=2)
    zeros = torch.zeros_like(later[:, :1])
    later, earlier = torch.cat((later[:, 1:], zeros), 1), torch.cat((zeros, earlier[:, :-1]), 1)
    return torch.cat((later, earlier, unmoved), 2).flatten(0, 1)


def _resnet_paths(net: nn.Module) -> dict[str, tuple[str, ...]]:
    names = ("layer1", "layer2", "layer3", "layer4")
    layers = {n: tuple(f"{n}.{i}" for i, _ in enumerate(net.get_submodule(n).children())) for n in names}
    return {"stem": ("conv1", "bn1", "relu", "maxpool"), **layers}


def _mobilenet_paths(backbone: str) -> dict[str, tuple[str, ...]]:
    names, ends = TSM[backbone].blocks, (0, 1, *BLOCK_ENDS[backbone])
    return {name: tuple(f"features.{j}" for j in range(ends[i], ends[i + 1])) for i, name in enumerate(names)}


def _step(module: nn.Module, state: State, fraction: float) -> State:
    """Run one module. The state is the clip, then (frames of all clips, T)."""
    if isinstance(state, Tensor):
        state = state.transpose(1, 2).flatten(0, 1), state.shape[2]
    x_FCHW, frames = cast(tuple[Tensor, int], state)
    shift = partial(temporal_shift, frames=frames, fraction=fraction)
    if isinstance(module, BasicBlock | Bottleneck):
        return _residual(module, x_FCHW, shift(x_FCHW)), frames
    if isinstance(module, InvertedResidualV2) and module.use_res_connect:
        return x_FCHW + module.conv(shift(x_FCHW)), frames
    if isinstance(module, InvertedResidualV3) and module.use_res_connect:
        return x_FCHW + module.block(shift(x_FCHW)), frames
    return module(x_FCHW), frames


def _residual(block: BasicBlock | Bottleneck, x_FCHW: Tensor, shifted_FCHW: Tensor) -> Tensor:
    """Run torchvision's block, with the branch on shifted frames and the shortcut on the original ones."""
    y = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(shifted_FCHW)))))
    if isinstance(block, Bottleneck):
        y = block.bn3(block.conv3(block.relu(y)))
    return block.relu(y + (x_FCHW if block.downsample is None else block.downsample(x_FCHW)))


def _map(state: State) -> Tensor:
    x_FCHW, frames = cast(tuple[Tensor, int], state)
    return x_FCHW.unflatten(0, (-1, frames)).transpose(1, 2)


def _state(x_BCTHW: Tensor) -> State:
    return x_BCTHW.transpose(1, 2).flatten(0, 1), x_BCTHW.shape[2]


def _positions(net: nn.Module, state: State) -> Tensor:
    return linear_positions(net, _map(state))


def _finish(net: Any, state: State, head: str) -> Tensor:
    """Return the logits of the frames, averaged over each clip (the segment consensus of TSN, which TSM keeps)."""
    x_FCHW, frames = cast(tuple[Tensor, int], state)
    return net.get_submodule(head)(x_FCHW.mean((2, 3))).unflatten(0, (-1, frames)).mean(1)
