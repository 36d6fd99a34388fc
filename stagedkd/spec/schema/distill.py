"""Section `distill`: what is held against what, and the phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag

from stagedkd.spec.schema.base import Count, Epochs, Section, by_form
from stagedkd.spec.schema.losses import Losses
from stagedkd.spec.schema.training import TrainPatch

Trained: TypeAlias = Annotated[
    Annotated[Literal["all", "one_by_one"], Tag("word")] | Annotated[tuple[Count, ...], Tag("list")],
    by_form("all, one_by_one or a list of substage numbers"),
]

PhaseName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]


class Phase(Section):
    """A span of epochs with its own trained substages and losses."""

    epochs: Epochs | None = None
    """Epochs (of each substage under one_by_one); unset: what the student's `epochs` leave."""
    losses: Losses
    """The losses, by name."""
    ramp: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Epochs over which a pair's feature losses rise from 0, one pair after the other: pair j, from 0, begins at epoch
    j * ramp. Unset: all at once."""
    substages: Trained = "all"
    """Which substages are trained: all; one_by_one, a phase each with the earlier ones frozen; or their numbers,
    counted from 1."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this phase."""


PairNumbers: TypeAlias = tuple[Annotated[tuple[Count, Count], Field()], ...]
Pairing: TypeAlias = Annotated[
    Annotated[Literal["auto", "stride", "depth", "correlation", "review"], Tag("word")]
    | Annotated[PairNumbers, Field(min_length=1), Tag("list")],
    by_form("auto, stride, depth, correlation, review or a list of [student, teacher] numbers"),
]


class TeacherUse(Section):
    """What a method wants of the teacher, whatever teacher it is."""

    stop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Its training is stopped after this share of its epochs, with the schedule of them all (Cho & Hariharan 2019)."""
    labels: Literal["same"] | None = None
    """same: it is trained on the student's weak labels, whatever `teacher.labels` says."""
    shuffle: bool = False
    """A control that must not help: each clip is shown what the teacher says of another clip of the batch."""


class Distill(Section):
    """How each hop of the cascade is trained."""

    pairing: Pairing = "auto"
    """Which teacher substage each student substage is held against. auto: one to one, else by stride, else by depth;
    stride: the same reduction of height and width; depth: the same share of the way; correlation: each teacher substage
    against a mixture of the student's by measured correlation (our formulation); review: fused from deep to shallow
    (Chen et al. 2021); or pairs of numbers, from 1."""
    pair_weights: Literal["uniform", "trust", "deficit"] = "uniform"
    """Weights of the pairs: equal, more where correlation is high, or more where it is low (our formulation)."""
    normalize: Literal["first_epoch"] | None = None
    """first_epoch: each loss is divided by its mean over the first epoch of the phase, so that weights compare."""
    guides: Literal["previous", "dense"] = "previous"
    """Whose logits guide a hop: the network above, or all networks above (DGKD, Son et al. 2021)."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that a guide is left out of a step, where there are several; one always stays."""
    warm_start: bool = False
    """Every network of the cascade starts from the tensors of the network above that have the same name and shape."""
    teacher: TeacherUse = TeacherUse()
    """What the method wants of the teacher."""
    phases: Annotated[Mapping[PhaseName, Phase], Field(min_length=1)]
    """The phases by name, run in order."""
