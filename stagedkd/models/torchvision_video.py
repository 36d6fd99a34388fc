"""torchvision's video networks, cut into named blocks, with a new head for the number of classes.

Shape legend: B clips, C channels, T frames, H, W pixels, N classes, D token width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from stagedkd.models.network import Anatomy, Network, State, linear_positions
from stagedkd.spec.schema.networks.torchvision import ZOO

# The last layer of each family, which is replaced to give another number of classes.
HEADS = {"resnet": "fc", "s3d": "classifier.1", "mvit": "head.1", "swin3d": "head"}


def torchvision_video(arch: str, classes: int) -> Network:
    """Build a torchvision video network by name, randomly initialised, with `classes` outputs."""
    net = cast(nn.Module, get_model(arch, weights=None))
    family = ZOO[arch].family
    parent, _, leaf = HEADS[family].rpartition(".")
    old = net.get_submodule(HEADS[family])
    if isinstance(old, nn.Conv3d):
        new: nn.Module = nn.Conv3d(old.in_channels, classes, 1)
    else:
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, classes)
        nn.init.normal_(new.weight, std=0.01)
        nn.init.zeros_(new.bias)
    owner: Any = net.get_submodule(parent)
    setattr(owner, leaf, new) if not leaf.isdigit() else owner.__setitem__(int(leaf), new)
    if family == "s3d":
        net.avgpool = nn.AdaptiveAvgPool3d(1)  # torchvision's pooling window fits only 16x224x224
    return Network(net, _anatomy(arch, family))


def _anatomy(arch: str, family: str) -> Anatomy:
    paths = _paths(arch, family)
    if family == "resnet":
        return Anatomy(paths, ("fc",), _finish_resnet, positions=linear_positions)
    if family == "s3d":
        return Anatomy(paths, ("classifier",), _finish_s3d, input_problem=_s3d_input_problem)
    if family == "swin3d":
        return Anatomy(
            paths,
            ("norm", "head"),
            _finish_swin,
            to_map=lambda x: x.permute(0, 4, 1, 2, 3),
            from_map=lambda x: x.permute(0, 2, 3, 4, 1),
            embed=_embed_swin,
            positions=lambda net, x: net.get_submodule("head")(net.get_submodule("norm")(x)).permute(0, 4, 1, 2, 3),
        )
    return Anatomy(
        paths,
        ("norm", "head"),
        _finish_mvit,
        _step_mvit,
        _map_mvit,
        _mvit_input_problem,
        from_map=None,  # the map lacks the CLS token
        embed=_embed_mvit,
    )


def _paths(arch: str, family: str) -> dict[str, tuple[str, ...]]:
    names = ZOO[arch].blocks
    if family == "resnet":
        return {name: (name,) for name in names}
    if family == "mvit":
        return {"stem": ("conv_proj", "pos_encoding"), **{n: (f"blocks.{i}",) for i, n in enumerate(names[1:])}}
    stem = {"stem": ("patch_embed", "pos_drop")} if family == "swin3d" else {"stem": ("features.0",)}
    first = 0 if family == "swin3d" else 1
    return stem | {name: (f"features.{first + i}",) for i, name in enumerate(names[1:])}


def _finish_resnet(net: nn.Module, x_BCTHW: Tensor) -> Tensor:
    return net.get_submodule("fc")(x_BCTHW.mean((2, 3, 4)))


def _finish_s3d(net: nn.Module, x_BCTHW: Tensor) -> Tensor:
    pooled = net.get_submodule("avgpool")(x_BCTHW)
    return net.get_submodule("classifier")(pooled).mean((2, 3, 4))


def _s3d_input_problem(size: tuple[int, int, int]) -> str:
    (frames, height, width), (least, side) = size, ZOO["s3d"].least
    too_small = frames < least or min(height, width) < side
    return f"s3d needs at least {least} frames of {side}x{side}, not {frames}x{height}x{width}" if too_small else ""


def _finish_swin(net: nn.Module, x_BTHWC: Tensor) -> Tensor:
    return net.get_submodule("head")(_embed_swin(net, x_BTHWC))


def _embed_swin(net: nn.Module, x_BTHWC: Tensor) -> Tensor:
    return net.get_submodule("norm")(x_BTHWC).mean((1, 2, 3))


def _step_mvit(module: nn.Module, state: State) -> State:
    """Run one module. The state is the clip; after the patch convolution a map; then (tokens with CLS, grid)."""
    if isinstance(state, tuple):
        tokens, grid = cast(tuple[Tensor, tuple[int, int, int]], state)
        return module(tokens, grid)
    if isinstance(module, nn.Conv3d):
        return module(state)
    grid = tuple(state.shape[2:])  # the positional encoding adds the CLS token
    return module(state.flatten(2).transpose(1, 2)), grid


def _map_mvit(state: State) -> Tensor:
    tokens, grid = cast(tuple[Tensor, tuple[int, int, int]], state)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def _finish_mvit(net: nn.Module, state: State) -> Tensor:
    return net.get_submodule("head")(_embed_mvit(net, state))


def _embed_mvit(net: nn.Module, state: State) -> Tensor:
    tokens, _ = cast(tuple[Tensor, tuple[int, int, int]], state)
    return net.get_submodule("norm")(tokens)[:, 0]


def _mvit_input_problem(size: tuple[int, int, int]) -> str:
    frames, height, width = size
    return "" if size == (16, 224, 224) else f"mvit runs at 16x224x224 only, not {frames}x{height}x{width}"


def meta_trunk_params(arch: str) -> int:
    """Count the parameters without the last layer on the meta device, to check the numbers in the zoo's plain data."""
    with torch.device("meta"):
        net = cast(nn.Module, get_model(arch, weights=None))
    head = net.get_submodule(HEADS[ZOO[arch].family])
    return sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in head.parameters())
