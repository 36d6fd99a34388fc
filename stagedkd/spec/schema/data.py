"""Sections `data`, `labels`, `refine`: the clips, and the labels with which networks are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Epochs, Fraction, Section, Seed, Word
from stagedkd.spec.schema.simulated import Simulated
from stagedkd.spec.schema.training import TrainPatch
from stagedkd.spec.schema.videos import Videos

Data: TypeAlias = Annotated[Simulated | Videos, Field(discriminator="kind")]


class Symmetric(Section):
    """Symmetric noise: a label is replaced by another class, and all other classes are equally likely."""

    kind: Literal["symmetric"]
    """The noise model."""
    rate: Fraction
    """Probability that a label is replaced."""


class PairFlip(Section):
    """Pair-flip noise: a label is replaced by the next class, and the last class by the first."""

    kind: Literal["pair_flip"]
    """The noise model."""
    rate: Fraction
    """Probability that a label is replaced."""


class Asymmetric(Section):
    """Asymmetric noise: a class is mistaken for one certain other class."""

    kind: Literal["asymmetric"]
    """The noise model."""
    rate: Fraction
    """Probability that a label of a class in `confusions` is replaced."""
    confusions: Annotated[Mapping[Word, Word], Field(min_length=1)]
    """Map from a class to the class that it is mistaken for. Other classes keep their labels."""


class InstanceDependent(Section):
    """Instance-dependent noise after Xia et al. 2020: every clip has its own probability of a wrong label, and its
    appearance decides which label that is."""

    kind: Literal["instance"]
    """The noise model."""
    rate: Fraction
    """Mean probability that a label is replaced. The probability of a clip is normally distributed around it, with
    standard deviation 0.1."""


Noise: TypeAlias = Annotated[Symmetric | PairFlip | Asymmetric | InstanceDependent, Field(discriminator="kind")]


class Labels(Section):
    """The training labels that the networks get, as fractions of each class. The rest is unlabelled."""

    clean: Fraction = 1.0
    """Fraction of clips that keep their true label."""
    noisy: Fraction = 0.0
    """Fraction of clips whose label goes through `noise`."""
    noise: Noise | None = None
    """Model of the label noise; required if `noisy` is above 0."""
    by: Literal["clip", "group"] = "clip"
    """Unit of the random choice: single clips, or whole groups, so that near copies are treated alike. With groups, the
    fractions hold as closely as the sizes of the groups allow."""
    seed: Seed = 0
    """Seed of the random choice and of the noise."""

    @model_validator(mode="after")
    def _shares(self) -> Labels:
        if self.clean + self.noisy > 1 + 1e-9:
            raise ValueError(f"clean {self.clean:g} and noisy {self.noisy:g} add up to more than 1")
        if self.noisy > 0 and self.noise is None:
            raise ValueError("noisy labels need noise: {kind: symmetric, rate: ...}")
        return self


class Refine(Section):
    """Refinement of the labels by out-of-fold predictions (our formulation, based on Confident Learning, Northcutt et
    al. 2021). Clean labels stay as they are."""

    # The work of a round holds what it needs of these fields, so that adding a round changes no other round's key.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"rounds", "by", "epochs", "train", "between_hops"})
    kind: Literal["noise_model", "ema"]
    """The rule. noise_model: posteriors under an estimated noise model. ema, for comparison: a moving average of labels
    and predictions, which at a `decay` of 0.5 or more cannot change a label in the first round."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Maximum number of rounds. Each round trains on the labels of the round before."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Number of folds of the out-of-fold predictions. A group is never split between folds."""
    by: Literal["teacher", "student", "both"] = "teacher"
    """Architecture that is trained out of fold. both: a mixture of the two, weighted for each clip by their
    confidence."""
    epochs: Epochs | None = None
    """Epochs of each out-of-fold training. Unset: the epochs of the network."""
    train: TrainPatch | None = None
    """Overrides the `train` of the networks in their out-of-fold trainings. Unset: each is trained like its network."""
    accept: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Smallest posterior at which a label is accepted. With `by: both`, the two networks must also agree."""
    threshold: Literal["fixed", "flexmatch"] = "fixed"
    """fixed: `accept` for all classes. flexmatch: a lower threshold for classes that few clips have reached yet (Zhang
    et al. 2021)."""
    targets: Literal["soft", "hard"] = "soft"
    """Targets of the loss `pseudo`: the posterior (soft), or its most probable class (hard)."""
    align: Fraction = 0.0
    """Exponent of a correction that moves the class frequencies of the posteriors towards those of the clean labels.
    Keep 0 unless the clean labels have the right frequencies."""
    decay: Fraction = 0.7
    """Weight of the old label in a round of `kind: ema`."""
    between_hops: bool = False
    """Hop i uses the labels of round i, made by the network above it. Otherwise every hop uses those of the last
    round."""
    seed: Seed = 0
    """Seed of the folds and of the out-of-fold trainings."""
