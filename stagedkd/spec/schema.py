"""The sections of a spec: frozen, strict, closed models. What they mean is said at each field.

An `epoch` is always ceil(training clips / batch) steps, whichever clips a loss uses, so that equal epochs are equal
steps for every method (a loss on few labels cycles through them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]


def _form(value: Any) -> str:
    """How a value is written: the arm of a union whose members are of different forms."""
    if isinstance(value, (int, float)):
        return "number"
    return "word" if isinstance(value, str) else "list" if isinstance(value, (tuple, list)) else "map"


def _by_form(wanted: str) -> Discriminator:
    """A union told apart by form, so that an error speaks of one arm, not of all."""
    return Discriminator(_form, custom_error_type="form", custom_error_message=f"must be {wanted}")


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)
    unkeyed: ClassVar[frozenset[str]] = frozenset()  # fields that change no number, and so stay out of keys


# ---------------------------------------------------------------- data


class Shapes(Section):
    """Simulated clips of moving shapes: motion classes in time-reversal pairs, rendered from (seed, index)."""

    kind: Literal["shapes"]
    classes: Annotated[int, Field(ge=2, le=12, multiple_of=2)] = 8
    train: Count = 512
    val: Count = 160
    test: Count = 160
    seed: Seed = 0
    speed: Annotated[float, Field(gt=0, le=4)] = 1.0
    noise: Annotated[float, Field(ge=0, le=1)] = 0.1
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    distractors: Annotated[int, Field(ge=0, le=8)] = 0


class Grouped(Section):
    """Splits by group: the groups are shuffled by `seed` and dealt into `folds` parts, class by class as evenly as
    groups allow. Part `fold` (and the next ones) is validation, the parts after it test, the rest training."""

    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    val_folds: Annotated[int, Field(ge=1)] = 1
    test_folds: Annotated[int, Field(ge=0)] = 1
    seed: Seed = 0
    bad_files: Literal["quarantine", "strict"] = "quarantine"

    @model_validator(mode="after")
    def _parts(self) -> Grouped:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} folds; it counts from 0 to {self.folds - 1}")
        if self.val_folds + self.test_folds >= self.folds:
            raise ValueError("no part is left for training: val_folds + test_folds must be below folds")
        return self


class Folder(Grouped):
    """A folder of videos, one folder a class; every video its own group."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    kind: Literal["folder"]
    path: Annotated[str, Field(min_length=1)] = "."


class Csv(Grouped):
    """A table path,label[,group][,split][,clean]; paths relative to the table. An empty label means unlabelled;
    `clean` is 1 for a label that can be trusted and 0 for a noisy one; `split` is train, val or test."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    kind: Literal["csv"]
    path: Annotated[str, Field(min_length=1)]


class Ucf101(Section):
    """UCF101 with its official lists; validation is carved from training by group."""

    kind: Literal["ucf101"]
    split: Annotated[int, Field(ge=1, le=3)] = 1
    seed: Seed = 0
    bad_files: Literal["quarantine", "strict"] = "quarantine"


Data: TypeAlias = Annotated[Shapes | Folder | Csv | Ucf101, Field(discriminator="kind")]


class Clip(Section):
    """What a network sees: `frames` frames, every `stride`-th, of `size` x `size` pixels, cropped from frames whose
    shorter side is `resize` pixels (8/7 of the size unless set). A video too short is looped, padded or refused."""

    frames: Annotated[int, Field(ge=1, le=512)] = 16
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    size: Annotated[int, Field(ge=8, le=1024)] = 112
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    short: Literal["loop", "pad", "refuse"] = "loop"

    @model_validator(mode="after")
    def _room(self) -> Clip:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}")
        return self

    @property
    def shorter_side(self) -> int:
        """Shorter side of the cached frames in pixels."""
        return self.resize or round(self.size * 8 / 7)


class Augment(Section):
    """Random views of training clips. `crop` is the smallest area share of a random crop (1 = whole frame), `flip`
    the chance of a mirror image (unset: 0.5 for videos, 0 for simulated motion, where left and right are classes),
    `jitter` the largest relative change of brightness and contrast."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.6
    flip: Share | None = None
    jitter: Share = 0.2


class Symmetric(Section):
    """Symmetric noise: with probability `rate` a label is replaced by another class, all equally likely."""

    kind: Literal["symmetric"]
    rate: Share


class Labels(Section):
    """Which training labels the networks get: the shares `clean` and `noisy` per class; the rest is unlabelled."""

    clean: Share = 1.0
    noisy: Share = 0.0
    noise: Symmetric | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _shares(self) -> Labels:
        if self.clean + self.noisy > 1 + 1e-9:
            raise ValueError(f"clean {self.clean:g} and noisy {self.noisy:g} are more than 1 together")
        if self.noisy > 0 and self.noise is None:
            raise ValueError("noisy labels need noise: {kind: symmetric, rate: ...}")
        return self


# ---------------------------------------------------------------- training


class Train(Section):
    """How a network is trained; `lr` is the peak of the schedule, which restarts with each phase. `clip_grad` is the
    largest gradient norm (0: none); `ema` the decay of averaged weights, which restart with each phase and are the
    result where the last phase has them (0: none)."""

    batch: Annotated[int, Field(ge=1, le=65536)] = 32
    lr: Annotated[float, Field(gt=0, lt=100)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, lt=10)] = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def patched(self, *patches: TrainPatch) -> Train:
        """This with the set fields of each patch laid over it, in order: nearest last."""
        values = self.model_dump()
        for patch in patches:
            values |= patch.model_dump(exclude_none=True)
        return Train(**values)


class TrainPatch(Section):
    """Overrides of `train` at one teacher, assistant, student or phase; the nearest wins."""

    batch: Annotated[int, Field(ge=1, le=65536)] | None = None
    lr: Annotated[float, Field(gt=0, lt=100)] | None = None
    weight_decay: Annotated[float, Field(ge=0, lt=10)] | None = None
    optimizer: Literal["adamw", "sgd"] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    schedule: Literal["cosine", "constant"] | None = None
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    clip_grad: Annotated[float, Field(ge=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None


# ---------------------------------------------------------------- networks


class Resnet3dArch(Section):
    """A small 3-D ResNet: layer i has `blocks[i]` basic blocks of `width * 2**i` channels; `conv` is full 3x3x3,
    factorised (2+1)D, or mixed (3-D in stem and layer1, 2-D after)."""

    arch: Literal["resnet3d"]
    width: Annotated[int, Field(ge=4, le=1024)] = 16
    blocks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)] = (1, 1, 1, 1)
    conv: Literal["full", "r2plus1d", "mixed"] = "full"


class TorchvisionArch(Section):
    """A video network of torchvision, under torchvision's name."""

    arch: Literal[
        "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"
    ]  # fmt: skip


class FileArch(Section):
    """One's own network: `path` (below the specs' root) has `build(classes, **args) -> nn.Module` whose named
    children are the blocks, the last of them the head. `params` is the count without head, wanted for shares."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path", "params"})
    arch: Literal["file"]
    path: Annotated[str, Field(min_length=1)]
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    params: Count | None = None
    digest: str = Field(default="", repr=False)  # set by load_spec: SHA-256 of the file, which enters the key


class NetworkFields(Section):
    """What a network can say in any role: `weights` a torchvision name or the path of a safetensors or .pth file;
    `substages` runs of block names, in order (unset: cut where stride or width changes)."""

    weights: Annotated[str, Field(min_length=1)] | None = None
    substages: Annotated[tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...], Field(min_length=1)] | None = None
    train: TrainPatch = TrainPatch()


class TeacherFields(NetworkFields):
    """`labels: same` are the weak labels; `all` the hidden truth (a teacher from elsewhere, said in every report).
    `epochs: 0` takes the weights as they are."""

    epochs: Annotated[int, Field(ge=0, le=100_000)]
    labels: Literal["same", "all"] = "same"
    seed: Seed = 0


class Resnet3dStudent(NetworkFields, Resnet3dArch):
    """A student or assistant of the family resnet3d."""


class TorchvisionStudent(NetworkFields, TorchvisionArch):
    """A student or assistant from torchvision."""


class FileStudent(NetworkFields, FileArch):
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
    _by_form("a share of the teacher's parameters or a network"),
]


def arch_of(network: Student | Teacher) -> Arch:
    """The architecture alone, without weights, cut and training: what enters keys and is built."""
    if isinstance(network, Resnet3dArch):
        return Resnet3dArch(arch="resnet3d", width=network.width, blocks=network.blocks, conv=network.conv)
    if isinstance(network, TorchvisionArch):
        return TorchvisionArch(arch=network.arch)
    values = {name: getattr(network, name) for name in FileArch.model_fields}
    return FileArch(**values)


# ---------------------------------------------------------------- distillation


class Loss(Section):
    """A loss with its weight; a bare number is the weight."""

    weight: Weight = 1.0

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value


class Ce(Loss):
    """Cross-entropy on the given labels, with label `smoothing`."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Kd(Loss):
    """Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    temperature: Annotated[float, Field(gt=0, le=1000)] = 4.0


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""


class GaussianW2(Loss):
    """2-Wasserstein distance of channel Gaussians; `gamma` weighs the means (1: the closed form, 2: WKD-F).
    `samples` is the axis of the statistics: positions of a clip, or the batch."""

    gamma: Annotated[float, Field(ge=0, le=1000)] = 1.0
    samples: Literal["auto", "positions", "batch"] = "auto"


class Sp(Loss):
    """Similarity-preserving, Tung & Mori 2019."""


class Losses(Section):
    """The losses of a phase: name to weight, or to {weight: ..., parameters}."""

    ce: Ce | None = None
    kd: Kd | None = None
    hint: Hint | None = None
    gaussian_w2: GaussianW2 | None = None
    sp: Sp | None = None

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not self.named():
            raise ValueError("a phase needs at least one loss")
        return self

    def named(self) -> dict[str, Loss]:
        """The losses that are set, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: loss for name, loss in found.items() if loss is not None}

    def on(self, names: frozenset[str]) -> frozenset[str]:
        """Those of `names` that are set."""
        return names & self.named().keys()


RESPONSE_LOSSES = frozenset({"ce", "kd"})  # need logits
FEATURE_LOSSES = frozenset({"hint", "gaussian_w2", "sp"})  # need pairs of substages
TEACHER_LOSSES = frozenset({"kd"}) | FEATURE_LOSSES  # need a teacher
PROJECTED_LOSSES = frozenset({"hint", "gaussian_w2"})  # need equal channels; sp compares Gram matrices


class Phase(Section):
    """A span of epochs with its own trained substages and losses. `substages` is all, one_by_one (a phase each,
    earlier ones frozen, `epochs` each), or the numbers of those trained, counted from 1."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    losses: Losses
    substages: Annotated[
        Annotated[Literal["all", "one_by_one"], Tag("word")]
        | Annotated[tuple[Count, ...], Field(min_length=1), Tag("list")],
        _by_form("all, one_by_one or a list of substage numbers"),
    ] = "all"
    train: TrainPatch = TrainPatch()


class Distill(Section):
    """The phases of every hop, in order."""

    phases: Annotated[Mapping[str, Phase], Field(min_length=1)]


class Evaluate(Section):
    """The reported split, and the views that are averaged: `clips` in time, `crops` along the longer side."""

    split: Literal["val", "test"] = "val"
    clips: Annotated[int, Field(ge=1, le=100)] = 1
    crops: Literal[1, 3] = 1
    batch: Annotated[int, Field(ge=1, le=65536)] = 64


class Spec(Section):
    """A whole experiment."""

    data: Data
    clip: Clip = Clip()
    augment: Augment = Augment()
    labels: Labels = Labels()
    train: Train = Train()
    teacher: Teacher
    cascade: Annotated[
        Annotated[Literal["auto"], Tag("word")] | Annotated[tuple[Hop, ...], Tag("list")],
        _by_form("auto or a list of shares and networks"),
    ] = ()
    student: Student
    distill: Distill
    evaluate: Evaluate = Evaluate()
    control: Literal["ce"] | None = None
    seed: Seed = 0
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=,-]*$", max_length=120)]
