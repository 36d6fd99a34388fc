"""Losses that compare the logits of the student with a guide's."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.losses.base import Factor, Temperature
from stagedkd.spec.schema.losses.clipwise import ClipLoss, LogitLoss

Cells: TypeAlias = Annotated[int, Field(ge=1, le=64)]


class Kd(LogitLoss):
    """Knowledge distillation, Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    compares = "logits"

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dkd(LogitLoss):
    """Decoupled KD, Zhao et al. 2022: separate terms for the target class and for the other classes. For a clip without
    a label, the target is the class that the teacher predicts."""

    compares = "logits"
    takes_labels = True

    alpha: Factor = 1.0
    """Weight of the term that compares the target class with all others."""
    beta: Factor = 8.0
    """Weight of the term that compares the other classes with each other."""
    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dist(LogitLoss):
    """DIST, Huang et al. 2022: one minus the correlation of probabilities, over the classes and over the clips."""

    compares = "logits"

    beta: Factor = 1.0
    """Weight of the correlation over the classes, for each clip."""
    gamma: Factor = 1.0
    """Weight of the correlation over the clips, for each class."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""

    @property
    def unweighable(self) -> str:
        return "its gamma term correlates the clips of a batch; gamma: 0 leaves it out" if self.gamma else ""


class LogitStd(ClipLoss):
    """Knowledge distillation on standardised logits, Sun et al. 2024: `kd` with `standardise: true`."""

    compares = "logits"

    temperature: Temperature = 2.0
    """Divisor of the standardised logits of both networks."""


class Wttm(LogitLoss):
    """Weighted transformed teacher matching, Zheng & Yang 2024: KL between the teacher's softened probabilities and the
    student's plain ones, where a clip weighs more the less sure the teacher is."""

    compares = "logits"

    temperature: Temperature = 4.0
    """Divisor of the teacher's logits alone."""


class Mlld(LogitLoss):
    """Multi-level logit distillation, Jin et al. 2023: `kd`, the similarities of clips, and those of classes, each
    summed over several temperatures."""

    compares = "logits"

    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=16)] = (2.0, 3.0, 4.0, 5.0, 6.0)
    """Divisors of the logits of both networks."""
    instances: Factor = 1.0
    """Weight of the terms that compare clips one by one."""
    batches: Factor = 1.0
    """Weight of the terms that compare the similarities of the clips of a batch."""
    classes: Factor = 1.0
    """Weight of the terms that compare the similarities of the classes in a batch."""

    @property
    def unweighable(self) -> str:
        several = self.batches or self.classes
        return "two of its levels compare clips of a batch; batches: 0 and classes: 0 leave them out" if several else ""


class Sdd(LogitLoss):
    """Scale decoupled distillation, Wei et al. 2024, in three dimensions: `kd` between the logits of regions of the
    last feature map. It needs heads that average the last map and then apply a linear layer."""

    compares = "logits"
    takes_labels = True

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""
    scales: Annotated[tuple[tuple[Cells, Cells, Cells], ...], Field(min_length=1, max_length=8)] = (
        (1, 1, 1),
        (1, 2, 2),
        (1, 4, 4),
    )
    """The scales as [frames, rows, columns] of regions: [1, 1, 1] is the whole map. A scale is cut down to the smaller
    grid of both networks."""
    complementary: Factor = 2.0
    """Weight of a region whose class, in the teacher, is the label while that of the whole clip is not, or the other
    way round. For a clip without a label, the label is the class that the teacher predicts. Other regions have 1."""
    alpha: Factor | None = None
    """With `beta`: regions are compared by `dkd`, with its alpha. Unset: by `kd`."""
    beta: Factor | None = None
    """With `alpha`: regions are compared by `dkd`, with its beta. Unset: by `kd`."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.alpha is None) != (self.beta is None):
            raise ValueError("alpha and beta must be set together, for example {alpha: 1, beta: 8}")
        return self


class Ofa(LogitLoss):
    """One-for-all KD for unlike architectures, Hao et al. 2023: the teacher's logits are compared with the student's
    and with those of an exit behind each of its substages. The exits are adapters and never ship with the student."""

    compares = "logits"
    takes_labels = True

    gamma: Annotated[float, Field(ge=1, le=10)] = 1.0
    """How much the label counts: the teacher's probability of it is taken as (1 + p)^gamma - 1, and any other as
    p^gamma. The paper has 1 to 1.5."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""
    exits: Factor = 1.0
    """Weight of the sum over the exits, beside that of the student's own logits, 1."""
