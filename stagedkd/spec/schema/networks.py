"""Sections `teacher`, `student` and the members of `cascade`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, Tag

from stagedkd.spec.schema.base import Count, Epochs, Section, Seed, Weight, Word, by_form
from stagedkd.spec.schema.training import TrainPatch
from stagedkd.spec.schema.views import Input

Run: TypeAlias = Annotated[tuple[Word, ...], Field(min_length=1)]


class Resnet3dArch(Section):
    """A small 3-D ResNet: layer i has `blocks[i]` basic blocks of `width * 2**i` channels (He et al. 2016; Tran et al.
    2018 for `r2plus1d` and `mixed`)."""

    arch: Literal["resnet3d"]
    """A small 3-D ResNet of our zoo; its blocks are stem, layer1, layer2, ..."""
    width: Annotated[int, Field(ge=4, le=1024)] = 16
    """Channels of the stem and layer1; each further layer doubles them."""
    blocks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)] = (1, 1, 1, 1)
    """Residual blocks of each layer."""
    conv: Literal["full", "r2plus1d", "mixed"] = "full"
    """Convolutions: full 3x3x3, factorised (2+1)D, or mixed (3-D in stem and layer1, 2-D after)."""


class TorchvisionArch(Section):
    """A video network of torchvision, under torchvision's name."""

    arch: Literal[
        "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"
    ]  # fmt: skip
    """A video network of torchvision."""


class FileArch(Section):
    """One's own network. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path", "params"})
    arch: Literal["file"]
    """A network of one's own, from a Python file."""
    path: Word
    """The file, below the project's folder, with `build(classes, **args) -> nn.Module` whose named children are the
    blocks, the last of them the head."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of `build`."""
    params: Count | None = None
    """Parameters without the head; wanted where a share of them is asked for."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key


class NetworkFields(Section):
    """What a network can say in any role."""

    weights: Word | None = None
    """Where training starts from: a torchvision weight name, or the path of a .safetensors or .pth file."""
    substages: Annotated[tuple[Annotated[tuple[Word, ...], Field(min_length=1)], ...], Field(min_length=1)] | None = (
        None
    )
    """Runs of block names, in order, that are compared and trained as one; unset: cut where stride or width changes."""
    input: Input | None = None
    """What it makes of the shared view; unset: the view as it is."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this network."""


class TeacherFields(NetworkFields):
    """The teacher."""

    epochs: Annotated[int, Field(ge=0, le=100_000)]
    """Epochs of its training by cross-entropy; 0 takes the weights as they are."""
    labels: Literal["same", "all"] = "same"
    """same: the weak labels of `labels`; all: the true labels of all training clips (a teacher from elsewhere, said in
    every report)."""
    seed: Seed = 0
    """Seed of its initialisation and order; not that of the student, so that student seeds share a teacher."""
    share: Weight = 1.0
    """Its weight among several teachers (`co_teachers`)."""


class StudentFields(NetworkFields):
    """A student or assistant."""

    epochs: Epochs | None = None
    """Epochs of the whole hop, over all its phases. A phase without `epochs` takes what the others leave."""


class Resnet3dStudent(StudentFields, Resnet3dArch):
    """A student or assistant of the family resnet3d."""


class TorchvisionStudent(StudentFields, TorchvisionArch):
    """A student or assistant from torchvision."""


class FileStudent(StudentFields, FileArch):
    """A student or assistant of one's own."""


class Resnet3dTeacher(TeacherFields, Resnet3dArch):
    """A teacher of the family resnet3d."""


class TorchvisionTeacher(TeacherFields, TorchvisionArch):
    """A teacher from torchvision."""


class FileTeacher(TeacherFields, FileArch):
    """A teacher of one's own."""


Student: TypeAlias = Annotated[Resnet3dStudent | TorchvisionStudent | FileStudent, Field(discriminator="arch")]
Teacher: TypeAlias = Annotated[Resnet3dTeacher | TorchvisionTeacher | FileTeacher, Field(discriminator="arch")]
Arch: TypeAlias = Annotated[Resnet3dArch | TorchvisionArch | FileArch, Field(discriminator="arch")]

Hop: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, lt=1), Tag("number")] | Annotated[Student, Tag("map")],
    by_form("a share of the teacher's parameters or a network"),
]
Cascade: TypeAlias = Annotated[
    Annotated[Literal["auto"], Tag("word")] | Annotated[tuple[Hop, ...], Tag("list")],
    by_form("auto or a list of shares and networks"),
]


def arch_of(network: Student | Teacher) -> Arch:
    """The architecture alone, without weights, cut and training: what enters keys and is built."""
    if isinstance(network, Resnet3dArch):
        return Resnet3dArch(arch="resnet3d", width=network.width, blocks=network.blocks, conv=network.conv)
    if isinstance(network, TorchvisionArch):
        return TorchvisionArch(arch=network.arch)
    values = {name: getattr(network, name) for name in FileArch.model_fields}
    return FileArch(**values)
