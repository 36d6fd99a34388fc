"""Section `distill`: phases and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from stagedkd.spec.schema.base import Count, Epochs, Section, Weight, by_form
from stagedkd.spec.schema.training import TrainPatch


class Loss(Section):
    """A loss with its weight; a bare number is the weight."""

    bare: ClassVar[str | None] = "weight"
    weight: Weight = 1.0
    """Factor of the loss in the sum."""

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value


class Ce(Loss):
    """Cross-entropy on the given labels."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (Szegedy et al. 2016)."""


class Pseudo(Loss):
    """Cross-entropy on refined labels. Checked by this version, not run yet."""

    warmup_epochs: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Epochs over which the weight rises from 0."""


class Kd(Loss):
    """Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    temperature: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Divisor of the logits of both networks."""


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""


class GaussianW2(Loss):
    """2-Wasserstein distance of channel Gaussians (our formulation; the feature part of WKD, Lv et al. 2024)."""

    gamma: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the means against the deviations; 1: the closed form, 2: WKD-F."""
    samples: Literal["auto", "positions", "batch"] = "auto"
    """Axis of the statistics: positions of a clip, or the batch; auto: positions where a map has more than one."""


class Sp(Loss):
    """Similarity-preserving, Tung & Mori 2019: squared difference of the batch's Gram matrices."""


class Losses(Section):
    """The losses of a phase: name to weight, or to {weight: ..., parameters}."""

    ce: Ce | None = None
    """Cross-entropy on the given labels; on labelled clips alone."""
    pseudo: Pseudo | None = None
    """Cross-entropy on refined labels; wants `refine`."""
    kd: Kd | None = None
    """Knowledge distillation on logits; on all clips, labelled or not."""
    hint: Hint | None = None
    """Mean squared error of paired features, through a projector."""
    gaussian_w2: GaussianW2 | None = None
    """Distance of the distributions of paired features, through a projector."""
    sp: Sp | None = None
    """Similarities within the batch, of paired features."""

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not self.named():
            raise ValueError("a phase without a loss trains nothing")
        return self

    def named(self) -> dict[str, Loss]:
        """The losses that are set, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: loss for name, loss in found.items() if loss is not None}

    def on(self, names: frozenset[str]) -> frozenset[str]:
        """Those of `names` that are set."""
        return names & self.named().keys()


RESPONSE_LOSSES = frozenset({"ce", "pseudo", "kd"})  # need logits
FEATURE_LOSSES = frozenset({"hint", "gaussian_w2", "sp"})  # need pairs of substages
TEACHER_LOSSES = frozenset({"kd"}) | FEATURE_LOSSES  # need a teacher
PROJECTED_LOSSES = frozenset({"hint", "gaussian_w2"})  # need equal channels; sp compares Gram matrices

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
    substages: Trained = "all"
    """Which substages are trained: all; one_by_one, a phase each with the earlier ones frozen; or their numbers,
    counted from 1."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this phase."""


class Distill(Section):
    """How each hop of the cascade is trained."""

    phases: Annotated[Mapping[PhaseName, Phase], Field(min_length=1)]
    """The phases by name, run in order."""
