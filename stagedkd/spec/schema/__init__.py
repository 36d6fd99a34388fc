"""The sections of a spec: frozen, strict, closed models. The docstrings of sections and fields make docs/spec.md."""

from __future__ import annotations

from stagedkd.spec.schema.base import Section
from stagedkd.spec.schema.data import (
    Asymmetric,
    Data,
    InstanceDependent,
    Labels,
    Noise,
    PairFlip,
    Refine,
    Symmetric,
)
from stagedkd.spec.schema.distill import Distill, Phase, TeacherUse
from stagedkd.spec.schema.losses.base import (
    EMBEDDED,
    FEATURES,
    GRAFT,
    LOGITS,
    PAIRED,
    PROJECTED,
    RESPONSES,
    WITH_TEACHER,
    Loss,
)
from stagedkd.spec.schema.losses.distribution import GaussianW2
from stagedkd.spec.schema.losses.feature import Hint
from stagedkd.spec.schema.losses.labels import Ce, Pseudo
from stagedkd.spec.schema.losses.own import FileLoss
from stagedkd.spec.schema.losses.relation import Crd, Sp
from stagedkd.spec.schema.losses.response import Kd
from stagedkd.spec.schema.losses.whole import Losses
from stagedkd.spec.schema.networks import (
    Arch,
    Architecture,
    Cascade,
    CascadeItem,
    DeclaredLabels,
    NetworkFields,
    OutputsArch,
    Quantise,
    Sees,
    Student,
    StudentFields,
    Teacher,
    TeacherFields,
    Widened,
    arch_of,
    is_weight_file,
)
from stagedkd.spec.schema.simulated import Domain, Simulated
from stagedkd.spec.schema.training import LongSchedule, Train, TrainPatch
from stagedkd.spec.schema.videos import Csv, Folder, FoldSplit, Grouped, Hmdb51, Jester, Kinetics, Ssv2, Ucf101, Videos
from stagedkd.spec.schema.views import Augment, Clip, Frames, Input, Size, sides, size_text
from stagedkd.spec.schema.whole import Evaluate, Spec

__all__ = [
    "EMBEDDED",
    "FEATURES",
    "GRAFT",
    "LOGITS",
    "PAIRED",
    "PROJECTED",
    "RESPONSES",
    "WITH_TEACHER",
    "Arch",
    "Architecture",
    "Asymmetric",
    "Augment",
    "Cascade",
    "CascadeItem",
    "Ce",
    "Clip",
    "Crd",
    "Csv",
    "Data",
    "DeclaredLabels",
    "Distill",
    "Domain",
    "Evaluate",
    "FileLoss",
    "FoldSplit",
    "Folder",
    "Frames",
    "GaussianW2",
    "Grouped",
    "Hint",
    "Hmdb51",
    "Input",
    "InstanceDependent",
    "Jester",
    "Kd",
    "Kinetics",
    "Labels",
    "LongSchedule",
    "Loss",
    "Losses",
    "NetworkFields",
    "Noise",
    "OutputsArch",
    "PairFlip",
    "Phase",
    "Pseudo",
    "Quantise",
    "Refine",
    "Section",
    "Sees",
    "Simulated",
    "Size",
    "Sp",
    "Spec",
    "Ssv2",
    "Student",
    "StudentFields",
    "Symmetric",
    "Teacher",
    "TeacherFields",
    "TeacherUse",
    "Train",
    "TrainPatch",
    "Ucf101",
    "Videos",
    "Widened",
    "arch_of",
    "is_weight_file",
    "sides",
    "size_text",
]
