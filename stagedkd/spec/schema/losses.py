"""Losses: what a phase may name, with their parameters. A bare number stands for the weight."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Section, Weight

Temperature: TypeAlias = Annotated[float, Field(gt=0, le=1000)]
Factor: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Samples: TypeAlias = Literal["auto", "positions", "batch"]


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

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dkd(Loss):
    """Decoupled KD, Zhao et al. 2022: the target class apart from the others. A clip without a label takes the
    teacher's class as its target."""

    alpha: Factor = 1.0
    """Weight of the target against the rest."""
    beta: Factor = 8.0
    """Weight of the other classes among themselves."""
    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dist(Loss):
    """DIST, Huang et al. 2022: one minus the correlation of probabilities, of each clip and of each class."""

    beta: Factor = 1.0
    """Weight of the correlation over the classes of a clip."""
    gamma: Factor = 1.0
    """Weight of the correlation over the clips of a class."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""


class LogitStd(Loss):
    """KD on standardised logits, Sun et al. 2024."""

    temperature: Temperature = 2.0
    """Divisor of the standardised logits of both networks."""


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""


class At(Loss):
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference of the attention maps."""


class GaussianW2(Loss):
    """2-Wasserstein distance of channel Gaussians (our formulation; the feature part of WKD, Lv et al. 2024)."""

    gamma: Factor = 1.0
    """Weight of the means against the deviations; 1: the closed form, 2: WKD-F."""
    samples: Samples = "auto"
    """Axis of the statistics: positions of a clip, or the batch; auto: positions where a map has more than one."""


class GaussianKl(Loss):
    """KL divergence of channel Gaussians (our formulation)."""

    samples: Samples = "auto"
    """Axis of the statistics: positions of a clip, or the batch; auto: positions where a map has more than one."""


class Mmd(Loss):
    """Squared maximum mean discrepancy with RBF kernels (Gretton et al. 2012), a paired U-statistic."""

    bandwidths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (
        0.5, 1.0, 2.0,
    )  # fmt: skip
    """Bandwidths of the kernels, in units of the mean squared distance."""
    samples: Samples = "auto"
    """Samples: positions of each clip, or the clips' mean features; auto: positions where a map has more than one."""


class Nst(Loss):
    """Neuron selectivity transfer, Huang & Wang 2017: MMD of the channels' maps with a polynomial kernel."""


class Coral(Loss):
    """Deep CORAL, Sun & Saenko 2016: difference of covariances, and of means (our addition)."""

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the covariances' diagonal that is mixed in where there are no more samples than channels."""


class SlicedW2(Loss):
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015)."""

    directions: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Random directions of projection, drawn anew each step."""
    samples: Samples = "auto"
    """Samples: positions of each clip, or the clips' mean features; auto: positions where a map has more than one."""


class Sp(Loss):
    """Similarity-preserving, Tung & Mori 2019: squared difference of the batch's Gram matrices."""


class Rkd(Loss):
    """Relational KD, Park et al. 2019: distances and angles between the clips of a batch."""

    alpha: Factor = 1.0
    """Weight of the distances."""
    beta: Factor = 2.0
    """Weight of the angles."""


class Pkt(Loss):
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: neighbourhoods within the batch."""


class Losses(Section):
    """The losses of a phase: name to weight, or to {weight: ..., parameters}."""

    ce: Ce | None = None
    """Cross-entropy on the given labels; on labelled clips alone."""
    pseudo: Pseudo | None = None
    """Cross-entropy on refined labels; wants `refine`."""
    kd: Kd | None = None
    """Knowledge distillation on logits; on all clips, labelled or not."""
    dkd: Dkd | None = None
    """Decoupled knowledge distillation; on all clips."""
    dist: Dist | None = None
    """Correlations of probabilities; on all clips."""
    logit_std: LogitStd | None = None
    """Knowledge distillation on standardised logits; on all clips."""
    hint: Hint | None = None
    """Mean squared error of paired features, through a projector."""
    at: At | None = None
    """Attention maps of paired features."""
    gaussian_w2: GaussianW2 | None = None
    """Distance of the distributions of paired features, through a projector."""
    gaussian_kl: GaussianKl | None = None
    """Divergence of the distributions of paired features, through a projector."""
    mmd: Mmd | None = None
    """Discrepancy of the distributions of paired features, through a projector."""
    nst: Nst | None = None
    """Discrepancy of the channels' maps of paired features."""
    coral: Coral | None = None
    """Difference of the covariances of paired features, through a projector."""
    sliced_w2: SlicedW2 | None = None
    """Distance of the projected distributions of paired features, through a projector."""
    sp: Sp | None = None
    """Similarities within the batch, of paired features."""
    rkd: Rkd | None = None
    """Distances and angles within the batch, of paired features."""
    pkt: Pkt | None = None
    """Neighbourhoods within the batch, of paired features."""

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


LOGIT_LOSSES = frozenset({"kd", "dkd", "dist", "logit_std"})  # compare logits with the teacher's
RESPONSE_LOSSES = frozenset({"ce", "pseudo"}) | LOGIT_LOSSES  # need logits
PROJECTED_LOSSES = frozenset({"hint", "gaussian_w2", "gaussian_kl", "mmd", "coral", "sliced_w2"})  # need equal channels
FEATURE_LOSSES = frozenset({"at", "nst", "sp", "rkd", "pkt"}) | PROJECTED_LOSSES  # need pairs of substages
TEACHER_LOSSES = LOGIT_LOSSES | FEATURE_LOSSES  # need a teacher
