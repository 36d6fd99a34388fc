"""Sections `data`, `clip`, `augment`, `labels`, `refine`: what the networks see, and with which labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Count, Section, Seed, Share, Word

BadFiles: TypeAlias = Literal["quarantine", "strict"]


class Shapes(Section):
    """Simulated clips of moving shapes: motion classes in time-reversal pairs, rendered from (seed, index), so that one
    frame does not tell the class."""

    kind: Literal["shapes"]
    """The simulator of moving shapes."""
    classes: Annotated[int, Field(ge=2, le=12, multiple_of=2)] = 8
    """Classes, in pairs that are each other's time reversal."""
    train: Count = 512
    """Training clips."""
    val: Count = 160
    """Validation clips."""
    test: Count = 160
    """Test clips."""
    seed: Seed = 0
    """Seed of the rendered clips."""
    speed: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Speed of the motion, relative."""
    noise: Share = 0.1
    """Standard deviation of the pixel noise, in units of the pixel range."""
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Contrast between shape and background, relative."""
    distractors: Annotated[int, Field(ge=0, le=8)] = 0
    """Shapes that move in ways of no meaning."""


class Grouped(Section):
    """Splits by group: the groups are shuffled by `seed` and dealt into `folds` parts, class by class as evenly as
    groups allow. Part `fold` (and the next ones) is validation, the parts after it test, the rest training."""

    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """Parts into which the groups are dealt."""
    fold: Annotated[int, Field(ge=0, le=999)] = 0
    """The part, counted from 0, with which validation begins; rotate it for cross-validation."""
    val_folds: Annotated[int, Field(ge=1, le=1000)] = 1
    """Parts of the validation split."""
    test_folds: Annotated[int, Field(ge=0, le=1000)] = 1
    """Parts of the test split; 0: no test split."""
    seed: Seed = 0
    """Seed of the shuffle of the groups."""
    bad_files: BadFiles = "quarantine"
    """quarantine lists unreadable files and goes on (up to 3 files or 1%); strict stops at the first."""

    @model_validator(mode="after")
    def _parts(self) -> Grouped:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} folds; it counts from 0 to {self.folds - 1}")
        if self.val_folds + self.test_folds >= self.folds:
            raise ValueError("no part is left for training: val_folds + test_folds must be below folds")
        return self


class Folder(Grouped):
    """A folder of videos, one folder a class; every video is its own group."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    kind: Literal["folder"]
    """Videos in one folder a class."""
    path: Word = "."
    """The folder, relative to the data root."""


class Csv(Grouped):
    """A table path,label[,group][,split][,clean]; paths relative to the table. An empty label means unlabelled;
    `clean` is 1 for a label that can be trusted and 0 for a noisy one; `split` is train, val or test."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    kind: Literal["csv"]
    """Videos listed in a table."""
    path: Word
    """The table, relative to the data root."""


class Ucf101(Section):
    """UCF101 (Soomro et al. 2012) with its official lists; validation is carved from training by group."""

    kind: Literal["ucf101"]
    """UCF101 in its official layout."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """Which of the three official splits."""
    seed: Seed = 0
    """Seed of the choice of validation groups."""
    bad_files: BadFiles = "quarantine"
    """quarantine lists unreadable files and goes on (up to 3 files or 1%); strict stops at the first."""


Data: TypeAlias = Annotated[Shapes | Folder | Csv | Ucf101, Field(discriminator="kind")]


class Clip(Section):
    """What a network sees of a video."""

    frames: Annotated[int, Field(ge=1, le=512)] = 16
    """Frames of a clip."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Every how many frames of the video one is taken."""
    size: Annotated[int, Field(ge=8, le=1024)] = 112
    """Height and width in pixels."""
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Shorter side in pixels of the frames from which clips are cropped; unset: 8/7 of the size."""
    short: Literal["loop", "pad", "refuse"] = "loop"
    """What happens to a video with too few frames: it is looped, its last frame is repeated, or it is a bad file."""

    @model_validator(mode="after")
    def _room(self) -> Clip:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}")
        return self

    @property
    def shorter_side(self) -> int:
        """Shorter side of the cached frames in pixels."""
        return self.resize or round(self.size * 8 / 7)


class Augment(Section):
    """Random views of training clips, drawn by (seed, epoch, clip)."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Smallest area of a random crop as a share of the frame; 1: the whole frame."""
    flip: Share | None = None
    """Chance of a mirror image; unset: 0.5 for videos, 0 for simulated motion, where left and right are classes."""
    jitter: Share = 0.2
    """Largest relative change of brightness and contrast."""


class Symmetric(Section):
    """Symmetric noise: a label is replaced by another class, all equally likely."""

    kind: Literal["symmetric"]
    """The noise model."""
    rate: Share
    """Chance that a label is replaced."""


class Labels(Section):
    """Which training labels the networks get, as shares per class; the rest is unlabelled."""

    clean: Share = 1.0
    """Share of clips with their true label."""
    noisy: Share = 0.0
    """Share of clips with a label that went through `noise`."""
    noise: Symmetric | None = None
    """How noisy labels go wrong; wanted where `noisy` is above 0."""
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
