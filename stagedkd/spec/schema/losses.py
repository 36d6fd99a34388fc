"""Losses: what a phase may name, with their parameters. A bare number stands for the weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Section, Weight, Word

Temperature: TypeAlias = Annotated[float, Field(gt=0, le=1000)]
Factor: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Samples: TypeAlias = Literal["auto", "positions", "batch"]

# What a loss compares: the student's logits with labels; both networks' logits; each pair of feature maps, as they are
# or with the student's channels projected to the teacher's; all pairs at once; the deepest pair alone.
Compares: TypeAlias = Literal["labels", "logits", "paired", "projected", "substages", "deepest"]
LOGITS: frozenset[Compares] = frozenset({"logits"})
RESPONSES: frozenset[Compares] = frozenset({"labels", "logits"})  # these need the student's logits
PROJECTED: frozenset[Compares] = frozenset({"projected"})
PAIRED: frozenset[Compares] = frozenset({"paired", "projected"})
FEATURES: frozenset[Compares] = frozenset({"paired", "projected", "substages", "deepest"})  # these need pairs
WITH_TEACHER: frozenset[Compares] = LOGITS | FEATURES  # these need a teacher


class Loss(Section):
    """A loss with its weight, which may change over the phase; a bare number is a constant weight."""

    bare: ClassVar[str | None] = "weight"
    compares: ClassVar[Compares]  # every loss says it, or `compared` tells it from the loss's fields
    takes_labels: ClassVar[bool] = False  # a loss on logits that is also given the labels
    weight: Weight = 1.0
    """Factor of the loss in the sum."""
    schedule: Literal["linear", "cosine"] | None = None
    """How the weight goes from `weight` to `to` over the phase; unset: it stays."""
    to: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    """Weight at the end of the phase, under `schedule`."""
    warmup_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Epochs over which the weight rises from 0 in a straight line, before and on top of `schedule`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @model_validator(mode="after")
    def _both_ends(self) -> Self:
        if (self.schedule is None) != (self.to is None):
            raise ValueError("schedule and to go together: {weight: 1, schedule: linear, to: 0}")
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not {"compares", "compared"} & vars(cls).keys():
            raise TypeError(f"the loss {cls.__name__} does not say what it compares: add compares = ...")

    @property
    def compared(self) -> Compares:
        """What the loss compares."""
        return self.compares

    @property
    def least_batch(self) -> int:
        """The smallest batch, in clips, that the loss can be computed on."""
        return 1

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the loss function: all fields but those of the weight and of one's own file."""
        return self.model_dump(exclude={*Loss.model_fields, "path", "on", "args", "digest"})


class Ce(Loss):
    """Cross-entropy on the given labels."""

    compares = "labels"

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (Szegedy et al. 2016)."""


class Pseudo(Loss):
    """Cross-entropy on refined labels, of the clips whose label was accepted; a mean over all clips of the batch."""

    compares = "labels"


class Fixmatch(Loss):
    """FixMatch, Sohn et al. 2020: cross-entropy of a strong view on the student's own class of the plain view, where
    that is sure enough. The student runs twice."""

    compares = "labels"

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Probability from which the student's own class counts."""


class Kd(Loss):
    """Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    compares = "logits"

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dkd(Loss):
    """Decoupled KD, Zhao et al. 2022: the target class apart from the others. A clip without a label takes the
    teacher's class as its target."""

    compares = "logits"
    takes_labels = True

    alpha: Factor = 1.0
    """Weight of the target against the rest."""
    beta: Factor = 8.0
    """Weight of the other classes among themselves."""
    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dist(Loss):
    """DIST, Huang et al. 2022: one minus the correlation of probabilities, of each clip and of each class."""

    compares = "logits"

    beta: Factor = 1.0
    """Weight of the correlation over the classes of a clip."""
    gamma: Factor = 1.0
    """Weight of the correlation over the clips of a class."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""


class LogitStd(Loss):
    """KD on standardised logits, Sun et al. 2024."""

    compares = "logits"

    temperature: Temperature = 2.0
    """Divisor of the standardised logits of both networks."""


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""

    compares = "projected"


class At(Loss):
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference of the attention maps."""

    compares = "paired"


class Review(Loss):
    """ReviewKD's hierarchical context loss, Chen et al. 2021: mean squared error on coarser and coarser grids."""

    compares = "projected"


class GaussianW2(Loss):
    """2-Wasserstein distance of channel Gaussians (our formulation; the feature part of WKD, Lv et al. 2024)."""

    compares = "projected"

    gamma: Factor = 1.0
    """Weight of the means against the deviations; 1: the closed form, 2: WKD-F."""
    samples: Samples = "auto"
    """Axis of the statistics: positions of a clip, or the batch; auto: positions where a map has more than one."""


class GaussianKl(Loss):
    """KL divergence of channel Gaussians (our formulation)."""

    compares = "projected"

    samples: Samples = "auto"
    """Axis of the statistics: positions of a clip, or the batch; auto: positions where a map has more than one."""


class Mmd(Loss):
    """Squared maximum mean discrepancy with RBF kernels (Gretton et al. 2012), a paired U-statistic."""

    compares = "projected"

    bandwidths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (
        0.5,
        1.0,
        2.0,
    )
    """Bandwidths of the kernels, in units of the mean squared distance."""
    samples: Samples = "auto"
    """Samples: positions of each clip, or the clips' mean features; auto: positions where a map has more than one."""


class Nst(Loss):
    """Neuron selectivity transfer, Huang & Wang 2017: MMD of the channels' maps with a polynomial kernel."""

    compares = "paired"


class Coral(Loss):
    """Deep CORAL, Sun & Saenko 2016: difference of covariances, and of means (our addition)."""

    compares = "projected"

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the covariances' diagonal that is mixed in where there are no more samples than channels."""


class SlicedW2(Loss):
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015)."""

    compares = "projected"

    directions: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Random directions of projection, drawn anew each step."""
    samples: Samples = "auto"
    """Samples: positions of each clip, or the clips' mean features; auto: positions where a map has more than one."""


class Sp(Loss):
    """Similarity-preserving, Tung & Mori 2019: squared difference of the batch's Gram matrices."""

    compares = "paired"


class Rkd(Loss):
    """Relational KD, Park et al. 2019: distances and angles between the clips of a batch."""

    compares = "paired"

    alpha: Factor = 1.0
    """Weight of the distances."""
    beta: Factor = 2.0
    """Weight of the angles."""

    @property
    def least_batch(self) -> int:
        return 2


class Pkt(Loss):
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: neighbourhoods within the batch."""

    compares = "paired"


class Cka(Loss):
    """One minus the linear centred kernel alignment of the batch (Kornblith et al. 2019)."""

    compares = "paired"

    debiased: bool = True
    """The debiased estimator (Nguyen et al. 2021), for batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class StageCka(Loss):
    """Squared difference of the two networks' matrices of alignment between their own substages (our formulation)."""

    compares = "substages"

    debiased: bool = True
    """The debiased estimator (Nguyen et al. 2021), for batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class Crd(Loss):
    """Contrastive representation distillation, Tian et al. 2020, on the deepest pair."""

    compares = "deepest"

    embedding: Annotated[int, Field(ge=2, le=4096)] = 128
    """Width of the space in which features are compared."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Other clips that each clip is told from."""
    temperature: Temperature = 0.07
    """Divisor of the similarities."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a remembered embedding that stays when its clip is seen."""

    @property
    def least_batch(self) -> int:
        return 2


class Own(Loss):
    """A loss of one's own. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    path: Word
    """The file, below the project's folder, with `loss(student, teacher, **args)`, which gives a scalar."""
    on: Literal["logits", "features"] = "logits"
    """What it is given: logits (B, N), or each pair of feature maps (B, C, T, H, W) on their common grid."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of `loss`."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key

    @property
    def compared(self) -> Compares:
        return "logits" if self.on == "logits" else "paired"


class Losses(Section):
    """The losses of a phase: name to weight, or to {weight: ..., parameters}."""

    ce: Ce | None = None
    """Cross-entropy on the given labels; on labelled clips alone."""
    pseudo: Pseudo | None = None
    """Cross-entropy on refined labels; wants `refine`."""
    fixmatch: Fixmatch | None = None
    """Agreement of two views of all clips; needs no teacher."""
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
    review: Review | None = None
    """Mean squared error of paired features on several grids, through a projector."""
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
    cka: Cka | None = None
    """Alignment within the batch, of paired features."""
    stage_cka: StageCka | None = None
    """Alignment between the substages of each network; wants two pairs or more."""
    crd: Crd | None = None
    """Contrast of each clip with others, of the deepest pair."""
    file: Own | None = None
    """A loss of one's own, from a Python file."""

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not self.named():
            raise ValueError("a phase without a loss trains nothing")
        return self

    def named(self) -> dict[str, Loss]:
        """The losses that are set, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: loss for name, loss in found.items() if loss is not None}

    def comparing(self, kinds: Collection[Compares]) -> frozenset[str]:
        """The names of the losses that are set and compare one of these kinds of things."""
        return frozenset(name for name, loss in self.named().items() if loss.compared in kinds)


def loss_sections() -> dict[str, type[Loss]]:
    """The section of every loss, by the name that a spec gives it."""
    found: dict[str, type[Loss]] = {}
    for name, field in Losses.model_fields.items():
        found[name] = next(arm for arm in get_args(field.annotation) if arm is not type(None))
    return found
