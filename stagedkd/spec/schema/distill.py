"""Section `distill`: the pairs of substages that are compared, and the phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag

from stagedkd.spec.schema.base import Count, Epochs, Section, by_form
from stagedkd.spec.schema.losses.whole import Losses
from stagedkd.spec.schema.training import TrainPatch

Trained: TypeAlias = Annotated[
    Annotated[Literal["all", "one_by_one", "head"], Tag("word")] | Annotated[tuple[Count, ...], Tag("list")],
    by_form("all, one_by_one, head or a list of substage numbers"),
]

PhaseName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]


class Phase(Section):
    """A span of epochs with the substages and losses that it trains."""

    epochs: Epochs | None = None
    """Epochs of the phase; under one_by_one, epochs of each substage. Unset, and without `share`: the rest of the
    student's `epochs`."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the hop's epochs, in place of `epochs`; under one_by_one, of all substages together, which divide it as
    evenly as whole epochs allow. Shares become whole epochs by largest remainders, at least one for each substage."""
    losses: Losses
    """The losses, by name."""
    ramp: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Epochs over which the feature losses of a pair rise from 0, one pair after the other: pair j, counted from 0,
    starts at epoch j * ramp. Unset: all pairs count in full from the start."""
    substages: Trained = "all"
    """Substages that are trained. all: all of them. one_by_one: each in a phase of its own, with the earlier ones
    frozen. head: none of them, but the head, on frozen substages. Or a list of their numbers, counted from 1."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this phase."""


PairNumbers: TypeAlias = tuple[Annotated[tuple[Count, Count], Field()], ...]
Pairing: TypeAlias = Annotated[
    Annotated[Literal["auto", "stride", "depth", "correlation", "mixed", "review"], Tag("word")]
    | Annotated[PairNumbers, Field(min_length=1), Tag("list")],
    by_form("auto, stride, depth, correlation, mixed, review or a list of [student, teacher] numbers"),
]


class TeacherUse(Section):
    """Settings by which a method changes the teacher, whichever teacher the spec has."""

    stop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the teacher's epochs after which its training stops. The learning-rate schedule stays that of all
    epochs (Cho & Hariharan 2019)."""
    labels: Literal["same", "refined"] | None = None
    """The labels of every teacher, whatever `teacher.labels` is. same: the student's weak labels. refined: the refined
    labels."""
    shuffle: bool = False
    """A control that must not help: each clip gets the teacher's outputs for another clip of the batch."""


class Distill(Section):
    """The training of each hop of the cascade."""

    pairing: Pairing = "auto"
    """The teacher substage that each student substage is compared with. auto: one to one if possible, else by stride,
    else by depth. stride: the one with the same reduction of height and width. depth: the one at the same fraction of
    the depth. correlation: each teacher substage is compared with a mixture of student substages, by measured
    correlation (our formulation). mixed: the same mixtures in equal shares, the control of correlation. review: student
    substages are fused from deep to shallow (Chen et al. 2021). Or a list of pairs [student, teacher] of numbers,
    counted from 1."""
    pair_weights: Literal["uniform", "trust", "deficit"] = "uniform"
    """Weights of the pairs. uniform: equal. trust: larger where correlation is high. deficit: larger where it is low
    (our formulation)."""
    normalize: Literal["first_epoch"] | None = None
    """first_epoch: each loss is divided by its mean over the first epoch of the phase, so that weights are
    comparable."""
    guides: Literal["previous", "dense"] = "previous"
    """Networks whose logits guide a hop. previous: the network above. dense: all networks above (DGKD, Son et al.
    2021)."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a guide is left out of a step, if there are several. At least one always stays."""
    warm_start: bool = False
    """Every network of the cascade starts from those tensors of the network above that have the same name and shape."""
    teacher: TeacherUse = TeacherUse()
    """How the method changes the teacher."""
    phases: Annotated[Mapping[PhaseName, Phase], Field(min_length=1)]
    """The phases by name. They run in this order."""
