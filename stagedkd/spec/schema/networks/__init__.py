"""Sections `teacher`, `student` and the items of `cascade`: one file for each family of networks, and their unions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias, cast, get_args

from pydantic import Field, Tag

from stagedkd.spec.schema.base import Epochs, Section, by_form
from stagedkd.spec.schema.networks.base import (
    Architecture,
    DeclaredLabels,
    NetworkFields,
    Quantise,
    Sees,
    StudentFields,
    TeacherFields,
    is_weight_file,
)
from stagedkd.spec.schema.networks.file import FileArch, FileStudent, FileTeacher
from stagedkd.spec.schema.networks.hf import HfArch, HfStudent, HfTeacher
from stagedkd.spec.schema.networks.outputs import OutputsArch, OutputsTeacher
from stagedkd.spec.schema.networks.resnet3d import Resnet3dArch, Resnet3dStudent, Resnet3dTeacher
from stagedkd.spec.schema.networks.torchvision import TorchvisionArch, TorchvisionStudent, TorchvisionTeacher
from stagedkd.spec.schema.networks.tsm import TsmArch, TsmStudent, TsmTeacher
from stagedkd.spec.schema.training import TrainPatch

__all__ = [
    "Arch",
    "Architecture",
    "Cascade",
    "CascadeItem",
    "DeclaredLabels",
    "FileArch",
    "FileStudent",
    "FileTeacher",
    "HfArch",
    "HfStudent",
    "HfTeacher",
    "NetworkFields",
    "OutputsArch",
    "OutputsTeacher",
    "Quantise",
    "Resnet3dArch",
    "Resnet3dStudent",
    "Resnet3dTeacher",
    "Sees",
    "Student",
    "StudentFields",
    "Teacher",
    "TeacherFields",
    "TorchvisionArch",
    "TorchvisionStudent",
    "TorchvisionTeacher",
    "TsmArch",
    "TsmStudent",
    "TsmTeacher",
    "Widened",
    "arch_of",
    "family_of",
    "is_weight_file",
]

Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Student: TypeAlias = Annotated[
    Resnet3dStudent | TorchvisionStudent | TsmStudent | HfStudent | FileStudent, Field(discriminator="arch")
]
Teacher: TypeAlias = Annotated[
    Resnet3dTeacher | TorchvisionTeacher | TsmTeacher | HfTeacher | FileTeacher | OutputsTeacher,
    Field(discriminator="arch"),
]
Arch: TypeAlias = Annotated[
    Resnet3dArch | TorchvisionArch | TsmArch | HfArch | FileArch | OutputsArch, Field(discriminator="arch")
]


class Widened(Section):
    """An assistant: the student, widened to a share of the teacher's parameters."""

    mark: ClassVar[str | None] = "share"

    share: Share
    """Share of the teacher's parameters; the nearest width that exists is taken."""
    epochs: Epochs | None = None
    """Epochs of its hop, over all phases. Unset: those of the student."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this assistant. Fields that are unset here are those of `student.train`."""


CascadeItem: TypeAlias = Annotated[
    Annotated[Share, Tag("number")] | Annotated[Widened, Tag("assistant")] | Annotated[Student, Tag("map")],
    by_form("a share of the teacher's parameters or a network", marked=("share", "assistant")),
]
Cascade: TypeAlias = Annotated[
    Annotated[Literal["auto"], Tag("word")] | Annotated[tuple[CascadeItem, ...], Tag("list")],
    by_form("auto or a list of shares and networks"),
]

_FAMILIES: tuple[type[Architecture], ...] = get_args(get_args(Arch)[0])


def _require_roles() -> None:
    """Fail at import where a family is not in all three unions; a family that only teaches is no student."""
    families = {*_FAMILIES, *Architecture.__subclasses__()}
    for role, union in (("Arch", Arch), ("Student", Student), ("Teacher", Teacher)):
        members: tuple[type[Architecture], ...] = get_args(get_args(union)[0])
        for family in families:
            if role == "Student" and family.only_teaches:
                continue
            if not any(issubclass(member, family) for member in members):
                raise ImportError(f"the family {family.__name__} has no member of the union {role}")


_require_roles()


def arch_of(network: Student | Teacher) -> Arch:
    """Return only the architecture, without weights, cut and training: the part that enters keys and is built."""
    family = next(family for family in _FAMILIES if isinstance(network, family))
    return cast("Arch", family(**{name: getattr(network, name) for name in family.model_fields}))


def family_of(tag: object) -> type[Architecture] | None:
    """Return the family that `arch: tag` chooses; None if there is none of this name."""
    return next((family for family in _FAMILIES if tag in get_args(family.model_fields["arch"].annotation)), None)
