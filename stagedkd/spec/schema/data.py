"""Sections `data`, `labels`, `refine`: the clips, and with which labels the networks see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Section, Seed, Share, Word
from stagedkd.spec.schema.simulated import Simulated
from stagedkd.spec.schema.videos import Csv, Folder, Hmdb51, Kinetics, Ucf101

Data: TypeAlias = Annotated[Simulated | Folder | Csv | Ucf101 | Hmdb51 | Kinetics, Field(discriminator="kind")]


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
    Checked by this version, not run yet."""

    kind: Literal["noise_model", "ema"]
    """The rule: posteriors under an estimated noise model, or an exponential moving average of predictions."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Largest number of rounds."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Folds of the out-of-fold predictions."""
    accept: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Posterior from which a label is accepted."""
    by: Literal["teacher", "student"] = "teacher"
    """Which architecture is trained out of fold."""
