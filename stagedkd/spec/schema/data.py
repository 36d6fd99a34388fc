"""Sections `data`, `labels`, `refine`: the clips, and with which labels the networks see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Epochs, Section, Seed, Share, Word
from stagedkd.spec.schema.simulated import Simulated
from stagedkd.spec.schema.videos import Videos

Data: TypeAlias = Annotated[Simulated | Videos, Field(discriminator="kind")]


class Symmetric(Section):
    """Symmetric noise: a label is replaced by another class, all equally likely."""

    kind: Literal["symmetric"]
    """The noise model."""
    rate: Share
    """Chance that a label is replaced."""


class PairFlip(Section):
    """Pair-flip noise: a label is replaced by the next class, the last by the first."""

    kind: Literal["pair_flip"]
    """The noise model."""
    rate: Share
    """Chance that a label is replaced."""


class Asymmetric(Section):
    """Asymmetric noise: a class is taken for a certain other one."""

    kind: Literal["asymmetric"]
    """The noise model."""
    rate: Share
    """Chance that a label of a class in `confusions` is replaced."""
    confusions: Annotated[Mapping[Word, Word], Field(min_length=1)]
    """Class to the class that it is taken for; others stay."""


class InstanceDependent(Section):
    """Instance-dependent noise after Xia et al. 2020: every clip has its own chance of a wrong label, and its look
    decides which one."""

    kind: Literal["instance"]
    """The noise model."""
    rate: Share
    """Mean chance that a label is replaced; that of a clip is normal around it, deviation 0.1."""


Noise: TypeAlias = Annotated[Symmetric | PairFlip | Asymmetric | InstanceDependent, Field(discriminator="kind")]


class Labels(Section):
    """Which training labels the networks get, as shares per class; the rest is unlabelled."""

    clean: Share = 1.0
    """Share of clips with their true label."""
    noisy: Share = 0.0
    """Share of clips with a label that went through `noise`."""
    noise: Noise | None = None
    """How noisy labels go wrong; wanted where `noisy` is above 0."""
    by: Literal["clip", "group"] = "clip"
    """What is drawn: clips, or whole groups, so that near copies share their fate; shares then hold as nearly as groups
    allow."""
    seed: Seed = 0
    """Seed of the choice and of the noise."""

    @model_validator(mode="after")
    def _shares(self) -> Labels:
        if self.clean + self.noisy > 1 + 1e-9:
            raise ValueError(f"clean {self.clean:g} and noisy {self.noisy:g} are more than 1 together")
        if self.noisy > 0 and self.noise is None:
            raise ValueError("noisy labels need noise: {kind: symmetric, rate: ...}")
        return self


class Refine(Section):
    """Labels made anew from out-of-fold predictions (our formulation on Confident Learning, Northcutt et al. 2021).
    Clean labels stay as they are."""

    # What a round needs of these stands in its work: so a round more or less moves no other round's key.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"rounds", "by", "epochs", "between_hops"})
    kind: Literal["noise_model", "ema"]
    """The rule: posteriors under an estimated noise model; or, for comparison, a moving average of labels and
    predictions, which at a `decay` of 0.5 and more cannot flip a label in the first round."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Largest number of rounds; each trains on the labels of the one before."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Folds of the out-of-fold predictions, by group."""
    by: Literal["teacher", "student", "both"] = "teacher"
    """Which architecture is trained out of fold; both: a mixture, weighted clip by clip by how sure each of them is."""
    epochs: Epochs | None = None
    """Epochs of a training out of fold; unset: those of the network."""
    accept: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Posterior from which a label is accepted; by both, where the two agree, too."""
    threshold: Literal["fixed", "flexmatch"] = "fixed"
    """flexmatch: lower for classes that few clips have reached yet (Zhang et al. 2021)."""
    targets: Literal["soft", "hard"] = "soft"
    """What the loss pseudo is given: the posterior, or its class."""
    align: Share = 0.0
    """Exponent that draws the posteriors' classes towards their shares among the clean labels; 0 unless these shares
    are right."""
    decay: Share = 0.7
    """Share of the old label that stays in a round, under ema."""
    between_hops: bool = False
    """Hop i takes the labels of round i, made by the network above it, instead of every hop those of the last round."""
    seed: Seed = 0
    """Seed of the folds and of the trainings out of fold."""
