"""The losses that a phase may name, with their parameters. A bare number is the weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Section, Weight, Word

Temperature: TypeAlias = Annotated[float, Field(gt=0, le=1000)]
Factor: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Samples: TypeAlias = Literal["auto", "positions", "batch"]

# What a loss compares. labels: the student's logits with labels. logits: the logits of both networks. paired: each pair
# of feature maps. projected: each pair, with the student's channels projected to the teacher's. substages: all pairs at
# once. deepest: only the deepest pair.
Compares: TypeAlias = Literal["labels", "logits", "paired", "projected", "substages", "deepest"]
LOGITS: frozenset[Compares] = frozenset({"logits"})
RESPONSES: frozenset[Compares] = frozenset({"labels", "logits"})  # these need the student's logits
PROJECTED: frozenset[Compares] = frozenset({"projected"})
PAIRED: frozenset[Compares] = frozenset({"paired", "projected"})
FEATURES: frozenset[Compares] = frozenset({"paired", "projected", "substages", "deepest"})  # these need pairs
WITH_TEACHER: frozenset[Compares] = LOGITS | FEATURES  # these need a teacher


class Loss(Section):
    """A loss with its weight, which may change over the phase. A bare number is a constant weight."""

    bare: ClassVar[str | None] = "weight"
    compares: ClassVar[Compares]  # every loss sets it, or defines `compared` by its fields
    takes_labels: ClassVar[bool] = False  # a loss on logits that is also given the labels
    weight: Weight = 1.0
    """Factor of the loss in the sum of losses."""
    schedule: Literal["linear", "cosine"] | None = None
    """How the weight changes from `weight` to `to` over the phase. Unset: it is constant."""
    to: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    """Weight at the end of the phase, if `schedule` is set."""
    warmup_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Epochs over which the weight rises linearly from 0. This factor is applied on top of `schedule`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @model_validator(mode="after")
    def _both_ends(self) -> Self:
        if (self.schedule is None) != (self.to is None):
            raise ValueError("schedule and to must be set together, for example {weight: 1, schedule: linear, to: 0}")
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not {"compares", "compared"} & vars(cls).keys():
            raise TypeError(f"the loss {cls.__name__} does not set what it compares: add compares = ...")

    @property
    def compared(self) -> Compares:
        """The things that the loss compares."""
        return self.compares

    @property
    def least_batch(self) -> int:
        """The smallest batch, in clips, on which the loss can be computed."""
        return 1

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the loss function: all fields except those of the weight and of the user's file."""
        return self.model_dump(exclude={*Loss.model_fields, "path", "on", "args", "digest"})


class Ce(Loss):
    """Cross-entropy on the labels of the clips."""

    compares = "labels"

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (Szegedy et al. 2016)."""


class Pseudo(Loss):
    """Cross-entropy on refined labels, for the clips whose label was accepted. The mean is over all clips of the
    batch."""

    compares = "labels"


class Fixmatch(Loss):
    """FixMatch, Sohn et al. 2020: cross-entropy between the student's output for a strong view and the class that the
    student predicts for the plain view, if that prediction is confident enough. The student runs twice."""

    compares = "labels"

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Smallest probability at which the predicted class is used."""


class Kd(Loss):
    """Knowledge distillation, Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    compares = "logits"

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dkd(Loss):
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


class Dist(Loss):
    """DIST, Huang et al. 2022: one minus the correlation of probabilities, over the classes and over the clips."""

    compares = "logits"

    beta: Factor = 1.0
    """Weight of the correlation over the classes, for each clip."""
    gamma: Factor = 1.0
    """Weight of the correlation over the clips, for each class."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""


class LogitStd(Loss):
    """Knowledge distillation on standardised logits, Sun et al. 2024."""

    compares = "logits"

    temperature: Temperature = 2.0
    """Divisor of the standardised logits of both networks."""


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""

    compares = "projected"


class At(Loss):
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference between attention maps."""

    compares = "paired"


class Review(Loss):
    """ReviewKD's hierarchical context loss, Chen et al. 2021: mean squared error on increasingly coarse grids."""

    compares = "projected"


class GaussianW2(Loss):
    """2-Wasserstein distance between Gaussians of the channels (our formulation; the feature part of WKD, Lv et al.
    2024)."""

    compares = "projected"

    gamma: Factor = 1.0
    """Weight of the means relative to the deviations. 1: the closed form. 2: WKD-F."""
    samples: Samples = "auto"
    """Axis of the statistics. positions: the positions of a clip. batch: the clips of the batch. auto: positions if a
    map has more than one."""


class GaussianKl(Loss):
    """KL divergence between Gaussians of the channels (our formulation)."""

    compares = "projected"

    samples: Samples = "auto"
    """Axis of the statistics. positions: the positions of a clip. batch: the clips of the batch. auto: positions if a
    map has more than one."""


class Mmd(Loss):
    """Squared maximum mean discrepancy with RBF kernels (Gretton et al. 2012), as a paired U-statistic."""

    compares = "projected"

    bandwidths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (
        0.5,
        1.0,
        2.0,
    )
    """Bandwidths of the kernels, in units of the mean squared distance."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of each clip. batch: the mean features of the clips. auto:
    positions if a map has more than one."""


class Nst(Loss):
    """Neuron selectivity transfer, Huang & Wang 2017: MMD between the maps of the channels, with a polynomial
    kernel."""

    compares = "paired"


class Coral(Loss):
    """Deep CORAL, Sun & Saenko 2016: difference between covariances, and between means (our addition)."""

    compares = "projected"

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the diagonal of the covariances that is mixed in if there are no more samples than channels."""


class SlicedW2(Loss):
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015)."""

    compares = "projected"

    directions: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Number of random directions of projection, which are drawn again in each step."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of each clip. batch: the mean features of the clips. auto:
    positions if a map has more than one."""


class Sp(Loss):
    """Similarity-preserving KD, Tung & Mori 2019: squared difference between the Gram matrices of the batch."""

    compares = "paired"


class Rkd(Loss):
    """Relational KD, Park et al. 2019: differences of the distances and angles between the clips of a batch."""

    compares = "paired"

    alpha: Factor = 1.0
    """Weight of the distances."""
    beta: Factor = 2.0
    """Weight of the angles."""

    @property
    def least_batch(self) -> int:
        return 2


class Pkt(Loss):
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: divergence between the neighbourhoods within the
    batch."""

    compares = "paired"


class Cka(Loss):
    """One minus the linear centred kernel alignment of the batch (Kornblith et al. 2019)."""

    compares = "paired"

    debiased: bool = True
    """Use the debiased estimator (Nguyen et al. 2021), which needs batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class StageCka(Loss):
    """Squared difference between two matrices, one for each network: the alignment between its substages (our
    formulation)."""

    compares = "substages"

    debiased: bool = True
    """Use the debiased estimator (Nguyen et al. 2021), which needs batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class Crd(Loss):
    """Contrastive representation distillation, Tian et al. 2020, on the deepest pair."""

    compares = "deepest"

    embedding: Annotated[int, Field(ge=2, le=4096)] = 128
    """Width of the space in which features are compared."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Number of other clips with which each clip is contrasted."""
    temperature: Temperature = 0.07
    """Divisor of the similarities."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of the old embedding of a clip in the memory when the clip is seen again."""

    @property
    def least_batch(self) -> int:
        return 2


class FileLoss(Loss):
    """A loss of your own. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    path: Word
    """The Python file, in the project folder, with a function `loss(student, teacher, **args)` that returns a
    scalar."""
    on: Literal["logits", "features"] = "logits"
    """Arguments of the function. logits: the logits (B, N). features: each pair of feature maps (B, C, T, H, W), on
    their common grid."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of `loss`."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key

    @property
    def compared(self) -> Compares:
        return "logits" if self.on == "logits" else "paired"


class Losses(Section):
    """The losses of a phase, by name. A value is a weight, or {weight: ..., parameters}."""

    ce: Ce | None = None
    """Cross-entropy on labels, for labelled clips only."""
    pseudo: Pseudo | None = None
    """Cross-entropy on refined labels; needs `refine`."""
    fixmatch: Fixmatch | None = None
    """Agreement between two views of each clip, for all clips; needs no teacher."""
    kd: Kd | None = None
    """Knowledge distillation on logits, for all clips, labelled or not."""
    dkd: Dkd | None = None
    """Decoupled knowledge distillation, for all clips."""
    dist: Dist | None = None
    """Correlation of probabilities, for all clips."""
    logit_std: LogitStd | None = None
    """Knowledge distillation on standardised logits, for all clips."""
    hint: Hint | None = None
    """Mean squared error between paired features, through a projector."""
    at: At | None = None
    """Difference between the attention maps of paired features."""
    review: Review | None = None
    """Mean squared error between paired features on several grids, through a projector."""
    gaussian_w2: GaussianW2 | None = None
    """Distance between the distributions of paired features, through a projector."""
    gaussian_kl: GaussianKl | None = None
    """Divergence between the distributions of paired features, through a projector."""
    mmd: Mmd | None = None
    """Discrepancy between the distributions of paired features, through a projector."""
    nst: Nst | None = None
    """Discrepancy between the channel maps of paired features."""
    coral: Coral | None = None
    """Difference between the covariances of paired features, through a projector."""
    sliced_w2: SlicedW2 | None = None
    """Distance between the projected distributions of paired features, through a projector."""
    sp: Sp | None = None
    """Difference between the similarities within the batch, for paired features."""
    rkd: Rkd | None = None
    """Difference between the distances and angles within the batch, for paired features."""
    pkt: Pkt | None = None
    """Difference between the neighbourhoods within the batch, for paired features."""
    cka: Cka | None = None
    """Alignment within the batch, for paired features."""
    stage_cka: StageCka | None = None
    """Alignment between the substages of each network; needs two pairs or more."""
    crd: Crd | None = None
    """Contrast of each clip with other clips, for the deepest pair."""
    file: FileLoss | None = None
    """A loss of your own, from a Python file."""

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not self.named():
            raise ValueError("a phase without a loss trains nothing")
        return self

    def named(self) -> dict[str, Loss]:
        """Return the losses that are set, by name."""
        losses = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def comparing(self, kinds: Collection[Compares]) -> frozenset[str]:
        """Return the names of the losses that are set and compare one of `kinds`."""
        return frozenset(name for name, loss in self.named().items() if loss.compared in kinds)


def loss_sections() -> dict[str, type[Loss]]:
    """Return the section of every loss, by its name in a spec."""
    sections: dict[str, type[Loss]] = {}
    for name, field in Losses.model_fields.items():
        sections[name] = next(arm for arm in get_args(field.annotation) if arm is not type(None))
    return sections
