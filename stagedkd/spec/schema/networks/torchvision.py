"""The video networks of torchvision, by its names, with their facts as plain data: block names, natural cuts, parameter
counts and weight names. Tests compare these data with the built networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stagedkd.spec.schema.networks.base import Architecture, Cut, StudentFields, TeacherFields


class TorchvisionArch(Architecture):
    """A video network of torchvision, by its name there."""

    arch: Literal[
        "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"
    ]
    """A video network of torchvision."""

    @property
    def block_names(self) -> tuple[str, ...]:
        return ZOO[self.arch].blocks

    @property
    def natural_cut(self) -> Cut:
        return ZOO[self.arch].substages

    @property
    def strides(self) -> dict[str, int]:
        entry, reductions = ZOO[self.arch], dict[str, int]()
        reduction, halving = HALVING[entry.family]
        for name in entry.blocks:
            reduction *= 2 if name in halving else 1
            reductions[name] = reduction
        return reductions

    @property
    def trunk_params(self) -> int:
        return ZOO[self.arch].trunk_params

    @property
    def title(self) -> str:
        return self.arch

    @property
    def weight_names(self) -> tuple[str, ...]:
        return ZOO[self.arch].weights

    @property
    def weight_classes(self) -> int:
        return 400  # Kinetics-400

    @property
    def linear_head(self) -> bool:
        return ZOO[self.arch].family in ("resnet", "swin3d")

    @property
    def torchvision_name(self) -> str:
        return self.arch

    @property
    def fixed_input(self) -> tuple[int, int] | None:
        return ZOO[self.arch].input

    @property
    def runs_from_maps(self) -> bool:
        return ZOO[self.arch].family != "mvit"  # its class token is in no map

    @property
    def least_input(self) -> tuple[int, int]:
        return ZOO[self.arch].least


class TorchvisionStudent(StudentFields, TorchvisionArch):
    """A student or assistant from torchvision."""


class TorchvisionTeacher(TeacherFields, TorchvisionArch):
    """A teacher from torchvision."""


@dataclass(frozen=True)
class ZooEntry:
    """The facts of one network.

    `blocks` are in order, without the head. `substages` is the natural cut. `trunk_params` counts the parameters
    without the head, which is the last layer, or all linear layers in a mobilenet. `input` is the (frames, size) of the
    only clip that the network takes; None if it takes others. `least` is that of the smallest one.
    """

    family: Literal["resnet", "s3d", "mvit", "swin3d", "resnet2d", "mobilenet"]
    blocks: tuple[str, ...]
    substages: Cut
    trunk_params: int
    weights: tuple[str, ...]
    input: tuple[int, int] | None = None
    least: tuple[int, int] = (1, 8)


def _resnet(params: int) -> ZooEntry:
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    substages = (("stem", "layer1"), ("layer2",), ("layer3",), ("layer4",))
    return ZooEntry("resnet", names, substages, params, ("KINETICS400_V1",))


def _mvit(params: int, weights: str, cuts: Sequence[int]) -> ZooEntry:
    """Return an MViT. `cuts` are the blocks, counted from 1, at which a substage begins: there the grid is halved."""
    names = ("stem", *(f"block{i}" for i in range(1, 17)))
    ends = [*cuts[1:], 17]
    substages = [tuple(f"block{i}" for i in range(a, b)) for a, b in zip(cuts, ends, strict=True)]
    return ZooEntry("mvit", names, (("stem", *substages[0]), *substages[1:]), params, (weights,), (16, 224))


def _swin(params: int, *weights: str) -> ZooEntry:
    names = ("stem", "layer1", "merge1", "layer2", "merge2", "layer3", "merge3", "layer4")
    substages = (("stem", "layer1"), ("merge1", "layer2"), ("merge2", "layer3"), ("merge3", "layer4"))
    return ZooEntry("swin3d", names, substages, params, weights)


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
    # five halvings in space and three in time leave nothing of a smaller clip
    "s3d": ZooEntry(
        "s3d", _S3D, (_S3D[:4], _S3D[4:7], _S3D[7:13], _S3D[13:]), 7_910_048, ("KINETICS400_V1",), least=(8, 32)
    ),
    "mvit_v1_b": _mvit(36_303_072, "KINETICS400_V1", (1, 2, 4, 15)),
    "mvit_v2_s": _mvit(34_230_144, "KINETICS400_V1", (1, 2, 4, 15)),
    "swin3d_t": _swin(27_850_470, "KINETICS400_V1"),
    "swin3d_s": _swin(49_509_078, "KINETICS400_V1"),
    "swin3d_b": _swin(87_638_984, "KINETICS400_V1", "KINETICS400_IMAGENET22K_V1"),
}

# Reduction of height and width after the first block, and the blocks that halve them again.
HALVING: dict[str, tuple[int, frozenset[str]]] = {
    "resnet": (2, frozenset({"layer2", "layer3", "layer4"})),
    "s3d": (2, frozenset({"pool1", "pool2", "pool3", "pool4"})),
    "mvit": (4, frozenset({"block2", "block4", "block15"})),
    "swin3d": (4, frozenset({"merge1", "merge2", "merge3"})),
}
