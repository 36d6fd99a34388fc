"""The zoo's plain data: block names, natural cuts, parameter counts and weight names of torchvision's video networks
and of the backbones of `tsm`, and the closed forms of resnet3d. No torch; held equal to the built networks by tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePath
from typing import Literal, TypeAlias

Cut: TypeAlias = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ZooEntry:
    """`blocks` in order, without head; `stages` the natural cut; `trunk_params` without the head, which is the last
    layer, or of a mobilenet all its linear layers; `input` the (frames, size) that a network is fixed to."""

    family: Literal["resnet", "s3d", "mvit", "swin3d", "resnet2d", "mobilenet"]
    blocks: tuple[str, ...]
    stages: Cut
    trunk_params: int
    weights: tuple[str, ...]
    input: tuple[int, int] | None = None


def _resnet(params: int) -> ZooEntry:
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    stages = (("stem", "layer1"), ("layer2",), ("layer3",), ("layer4",))
    return ZooEntry("resnet", names, stages, params, ("KINETICS400_V1",))


def _mvit(params: int, weights: str, cuts: Sequence[int]) -> ZooEntry:
    """`cuts`: the transformer blocks (from 1) at which a stage begins, where the grid is halved."""
    names = ("stem", *(f"block{i}" for i in range(1, 17)))
    ends = [*cuts[1:], 17]
    stages = [tuple(f"block{i}" for i in range(a, b)) for a, b in zip(cuts, ends, strict=True)]
    return ZooEntry("mvit", names, (("stem", *stages[0]), *stages[1:]), params, (weights,), (16, 224))


def _swin(params: int, *weights: str) -> ZooEntry:
    names = ("stem", "layer1", "merge1", "layer2", "merge2", "layer3", "merge3", "layer4")
    stages = (("stem", "layer1"), ("merge1", "layer2"), ("merge2", "layer3"), ("merge3", "layer4"))
    return ZooEntry("swin3d", names, stages, params, weights)


_S3D = (
    "stem",
    "pool1",
    "conv2a",
    "conv2b",
    "pool2",
    "mixed3b",
    "mixed3c",
    "pool3",
    "mixed4b",
    "mixed4c",
    "mixed4d",
    "mixed4e",
    "mixed4f",
    "pool4",
    "mixed5b",
    "mixed5c",
)

ZOO: dict[str, ZooEntry] = {
    "r3d_18": _resnet(33_166_272),
    "mc3_18": _resnet(11_490_240),
    "r2plus1d_18": _resnet(31_300_125),
    "s3d": ZooEntry("s3d", _S3D, (_S3D[:4], _S3D[4:7], _S3D[7:13], _S3D[13:]), 7_910_048, ("KINETICS400_V1",)),
    "mvit_v1_b": _mvit(36_303_072, "KINETICS400_V1", (1, 2, 4, 15)),
    "mvit_v2_s": _mvit(34_230_144, "KINETICS400_V1", (1, 2, 4, 15)),
    "swin3d_t": _swin(27_850_470, "KINETICS400_V1"),
    "swin3d_s": _swin(49_509_078, "KINETICS400_V1"),
    "swin3d_b": _swin(87_638_984, "KINETICS400_V1", "KINETICS400_IMAGENET22K_V1"),
}


def _resnet2d(params: int, *weights: str) -> ZooEntry:
    plain = _resnet(params)
    return ZooEntry("resnet2d", plain.blocks, plain.stages, params, weights)


def _mobilenet(params: int, stages: int, *weights: str) -> ZooEntry:
    """Cut where the grid is halved; the first substage ends at a quarter of the input, as a resnet's layer1 does."""
    names = ("stem", *(f"stage{i + 1}" for i in range(stages)))
    first = len(names) - 3
    return ZooEntry("mobilenet", names, (names[:first], *((name,) for name in names[first:])), params, weights)


TSM: dict[str, ZooEntry] = {
    "mobilenet_v3_small": _mobilenet(927_008, 4, "IMAGENET1K_V1"),
    "mobilenet_v3_large": _mobilenet(2_971_952, 5, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "mobilenet_v2": _mobilenet(2_223_872, 5, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet18": _resnet2d(11_176_512, "IMAGENET1K_V1"),
    "resnet50": _resnet2d(23_508_032, "IMAGENET1K_V1", "IMAGENET1K_V2"),
}


def transformer_blocks(layers: int) -> tuple[str, ...]:
    """Block names of a network of `arch: hf`: stem (the embeddings), layer1 ... layerN."""
    return ("stem", *(f"layer{i + 1}" for i in range(layers)))


def transformer_cut(layers: int) -> Cut:
    """Equal runs of layers into 4 substages, fewer where there are fewer layers; the stem stands with the first."""
    names = transformer_blocks(layers)
    return merge_cut((names[:2], *((name,) for name in names[2:])), min(4, layers))


def resnet3d_blocks(blocks: Sequence[int]) -> tuple[str, ...]:
    """Block names of a resnet3d: stem, layer1 ... layerN."""
    return ("stem", *(f"layer{i + 1}" for i in range(len(blocks))))


def resnet3d_trunk_params(width: int, blocks: Sequence[int], conv: str) -> int:
    """Parameters of a resnet3d without its last layer, in closed form."""
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


@lru_cache(maxsize=4096)
def width_for(params: float, blocks: tuple[int, ...], conv: str) -> int:
    """The multiple of 4 whose resnet3d has the trunk nearest to `params`; at least 4, at most 1024."""
    return min(range(4, 1025, 4), key=lambda width: abs(resnet3d_trunk_params(width, blocks, conv) - params))


def is_weight_file(name: str) -> bool:
    """Whether `weights: name` is a path, not a name of torchvision."""
    return PurePath(name).suffix in (".safetensors", ".pth", ".pt")


def merge_cut(stages: Cut, parts: int) -> Cut:
    """Merge natural stages into `parts` runs of even depth. Raises ValueError: there are fewer stages than parts."""
    count = len(stages)
    if parts > count:
        raise ValueError(f"it has {count} natural substages, fewer than {parts}: declare its substages")
    ends = [round(i * count / parts) for i in range(parts + 1)]
    return tuple(tuple(name for stage in stages[a:b] for name in stage) for a, b in pairwise(ends))
