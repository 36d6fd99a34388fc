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
    ]
    """A video network of torchvision."""


class TsmArch(Section):
    """A 2-D network of torchvision with the temporal shift module (Lin et al. 2019): each frame runs through the 2-D
    network, residual branches see some channels of the frames before and after, and logits are averaged over frames."""

    arch: Literal["tsm"]
    """A 2-D network of torchvision with temporal shifts."""
    backbone: Literal["mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2", "resnet18", "resnet50"]
    """The 2-D network; its ImageNet weights fit."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    """Share of a residual branch's input channels that comes from the frame after, and again from the frame before
    (Lin et al. 2019: 1/8 each way); 0 makes a 2-D network."""


class HfArch(Section):
    """A video classifier of Hugging Face's transformers: VideoMAE, TimeSformer, ViViT or V-JEPA 2. Needs the extra
    `stagedkd[hf]`. `check`, `plan` and `explain` neither import transformers nor read the model."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"model", "params"})
    arch: Literal["hf"]
    """A video classifier of Hugging Face's transformers."""
    model: Word
    """A folder below the project's with `config.json` and `.safetensors` files, keyed by their content; else an id of
    the hub such as `owner/name`, keyed by the id."""
    layers: Annotated[int, Field(ge=1, le=1024)]
    """Transformer layers of the model. A wrong number is refused before anything runs."""
    pretrained: bool = True
    """Start from the model's weights; false: a random start from its configuration."""
    params: Count | None = None
    """Parameters without the head; wanted where a share of them is asked for."""
    digest: str = Field(default="", repr=False)  # set by the loader: the folder's content or the hub's id


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
    """Where training starts from: a torchvision weight name (ImageNet's for `tsm`), or the path of a .safetensors or
    .pth file."""
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


class TsmStudent(StudentFields, TsmArch):
    """A student or assistant with temporal shifts."""


class HfStudent(StudentFields, HfArch):
    """A student or assistant from transformers."""


class FileStudent(StudentFields, FileArch):
    """A student or assistant of one's own."""


class Resnet3dTeacher(TeacherFields, Resnet3dArch):
    """A teacher of the family resnet3d."""


class TorchvisionTeacher(TeacherFields, TorchvisionArch):
    """A teacher from torchvision."""


class TsmTeacher(TeacherFields, TsmArch):
    """A teacher with temporal shifts."""


class HfTeacher(TeacherFields, HfArch):
    """A teacher from transformers."""


class FileTeacher(TeacherFields, FileArch):
    """A teacher of one's own."""


Student: TypeAlias = Annotated[
    Resnet3dStudent | TorchvisionStudent | TsmStudent | HfStudent | FileStudent, Field(discriminator="arch")
]
Teacher: TypeAlias = Annotated[
    Resnet3dTeacher | TorchvisionTeacher | TsmTeacher | HfTeacher | FileTeacher, Field(discriminator="arch")
]
Arch: TypeAlias = Annotated[Resnet3dArch | TorchvisionArch | TsmArch | HfArch | FileArch, Field(discriminator="arch")]

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
    kind = TsmArch if isinstance(network, TsmArch) else HfArch if isinstance(network, HfArch) else FileArch
    return kind(**{name: getattr(network, name) for name in kind.model_fields})
