"""The family `resnet3d`: small 3-D ResNets of any width and depth, whose facts have closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import Field

from stagedkd.spec.schema.networks.base import Architecture, Cut, StudentFields, TeacherFields

WIDTHS = (*range(4, 8), *range(8, 32, 2), *range(32, 1025, 4))  # of widened networks: finer where networks are small


class Resnet3dArch(Architecture):
    """A small 3-D ResNet: layer i has `blocks[i]` basic blocks of `width * 2**i` channels (He et al. 2016; Tran et al.
    2018 for `r2plus1d` and `mixed`)."""

    arch: Literal["resnet3d"]
    """A small 3-D ResNet of our zoo; its blocks are stem, layer1, layer2, ..."""
    width: Annotated[int, Field(ge=4, le=1024)] = 16
    """Number of channels of the stem and layer1. Each further layer doubles it."""
    blocks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)] = (1, 1, 1, 1)
    """Number of residual blocks of each layer."""
    conv: Literal["full", "r2plus1d", "mixed"] = "full"
    """Convolutions. full: 3x3x3. r2plus1d: factorised (2+1)D. mixed: 3-D in stem and layer1, 2-D in later layers."""

    @property
    def block_names(self) -> tuple[str, ...]:
        return ("stem", *(f"layer{i + 1}" for i in range(len(self.blocks))))

    @property
    def natural_cut(self) -> Cut:
        names = self.block_names
        return (names[:2], *((name,) for name in names[2:]))

    @property
    def strides(self) -> dict[str, int]:
        return {"stem": 2} | {f"layer{i + 1}": 2 ** (i + 1) for i in range(len(self.blocks))}

    @property
    def trunk_params(self) -> int:
        return resnet3d_trunk_params(self.width, self.blocks, self.conv)

    @property
    def title(self) -> str:
        shape = f"resnet3d w{self.width} {'-'.join(map(str, self.blocks))}"
        return shape if self.conv == "full" else f"{shape} {self.conv}"

    @property
    def linear_head(self) -> bool:
        return True

    @property
    def widths(self) -> tuple[tuple[int, str], ...]:
        return tuple((params, f"width {width}") for width, params in _sizes(self.blocks, self.conv).items())

    def widened(self, trunk_params: float) -> Self:
        return self.model_copy(update={"width": width_for(trunk_params, self.blocks, self.conv)})


class Resnet3dStudent(StudentFields, Resnet3dArch):
    """A student or assistant of the family resnet3d."""


class Resnet3dTeacher(TeacherFields, Resnet3dArch):
    """A teacher of the family resnet3d."""


def resnet3d_trunk_params(width: int, blocks: Sequence[int], conv: str) -> int:
    """Return the number of parameters of a resnet3d without its last layer, in closed form."""
    total = 3 * width * 27 + 2 * width
    c_in = width
    for i, count in enumerate(blocks):
        c_out = width * 2**i
        kind = "r2plus1d" if conv == "r2plus1d" else "flat" if conv == "mixed" and i else "full"
        for j in range(count):
            first = c_in if j == 0 else c_out
            total += _conv_params(first, c_out, kind) + _conv_params(c_out, c_out, kind) + 4 * c_out
            if j == 0 and (i > 0 or first != c_out):
                total += first * c_out + 2 * c_out
        c_in = c_out
    return total


def _conv_params(c_in: int, c_out: int, kind: str) -> int:
    if kind == "r2plus1d":
        mid = (c_in * c_out * 27) // (c_in * 9 + 3 * c_out)
        return c_in * mid * 9 + 2 * mid + mid * c_out * 3
    return c_in * c_out * (9 if kind == "flat" else 27)


@lru_cache(maxsize=256)
def _sizes(blocks: tuple[int, ...], conv: str) -> dict[int, int]:
    """Return the trunk's parameters of each width of `WIDTHS`."""
    return {width: resnet3d_trunk_params(width, blocks, conv) for width in WIDTHS}


@lru_cache(maxsize=4096)
def width_for(params: float, blocks: tuple[int, ...], conv: str) -> int:
    """Return the width of `WIDTHS` whose resnet3d has the trunk nearest to `params` parameters."""
    sizes = _sizes(blocks, conv)
    return min(sizes, key=lambda width: abs(sizes[width] - params))
