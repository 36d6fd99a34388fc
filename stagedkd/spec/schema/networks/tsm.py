"""The family `tsm`: 2-D networks of torchvision with temporal shifts, with the facts of these backbones as plain data.
Tests compare the data with the built networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stagedkd.spec.schema.networks.base import Architecture, Cut, StudentFields, TeacherFields
from stagedkd.spec.schema.networks.torchvision import ZOO, ZooEntry


class TsmArch(Architecture):
    """A 2-D network of torchvision with the temporal shift module (Lin et al. 2019). Each frame runs through the 2-D
    network, residual branches get some channels of the frames before and after, and logits are averaged over frames."""

    arch: Literal["tsm"]
    """A 2-D network of torchvision with temporal shifts."""
    backbone: Literal["mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2", "resnet18", "resnet50"]
    """The 2-D network. `weights` can name its ImageNet weights."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    """Fraction of a residual branch's input channels that comes from the frame after, and again from the frame before
    (Lin et al. 2019: 1/8 each). 0: a purely 2-D network."""
    revision: Literal[2] = Field(default=2, repr=False)  # raised when the family computes other bits

    @property
    def block_names(self) -> tuple[str, ...]:
        return TSM[self.backbone].blocks

    @property
    def natural_cut(self) -> Cut:
        return TSM[self.backbone].substages

    @property
    def strides(self) -> None:
        return None

    @property
    def trunk_params(self) -> int:
        return TSM[self.backbone].trunk_params

    @property
    def title(self) -> str:
        return f"tsm {self.backbone}" + ("" if self.shift == 0.125 else f" shift {self.shift:g}")

    @property
    def weight_names(self) -> tuple[str, ...]:
        return TSM[self.backbone].weights

    @property
    def weight_classes(self) -> int:
        return 1000  # ImageNet-1K

    @property
    def linear_head(self) -> bool:
        return TSM[self.backbone].family == "resnet2d"

    @property
    def torchvision_name(self) -> str:
        return self.backbone


class TsmStudent(StudentFields, TsmArch):
    """A student or assistant with temporal shifts."""


class TsmTeacher(TeacherFields, TsmArch):
    """A teacher with temporal shifts."""


def _resnet2d(params: int, *weights: str) -> ZooEntry:
    video = ZOO["r3d_18"]
    return ZooEntry("resnet2d", video.blocks, video.substages, params, weights)


def _mobilenet(params: int, groups: int, *weights: str) -> ZooEntry:
    """Return a mobilenet, cut where the grid is halved; as in a resnet, the first substage ends at 1/4 of the size."""
    names = ("stem", *(f"stage{i + 1}" for i in range(groups)))
    first = len(names) - 3
    return ZooEntry("mobilenet", names, (names[:first], *((name,) for name in names[first:])), params, weights)


TSM: dict[str, ZooEntry] = {
    "mobilenet_v3_small": _mobilenet(927_008, 4, "IMAGENET1K_V1"),
    "mobilenet_v3_large": _mobilenet(2_971_952, 5, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "mobilenet_v2": _mobilenet(2_223_872, 5, "IMAGENET1K_V1", "IMAGENET1K_V2"),
    "resnet18": _resnet2d(11_176_512, "IMAGENET1K_V1"),
    "resnet50": _resnet2d(23_508_032, "IMAGENET1K_V1", "IMAGENET1K_V2"),
}
