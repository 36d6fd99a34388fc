"""The closed union of work: what a stage does, with everything resolved. Names stay out of keys, as `unkeyed` says."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from stagedkd.spec.schema import Arch, Augment, Clip, Data, Input, Labels, Losses, Section, Train

Cut: TypeAlias = tuple[tuple[str, ...], ...]


class Weights(Section):
    """A weight file: its name as the user gave it, and its SHA-256 from the lock (None: unlocked)."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    sha256: str | None


class PhaseWork(Section):
    """One phase of training. `trained` are the numbers of the trained substages, `frozen` of those that run frozen
    below them, `pairs` of those held against the teacher (all from 0); `head`: logits are made and the head trained."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    epochs: int
    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    pairs: tuple[int, ...]
    head: bool
    losses: Losses
    train: Train


class Reading(Section):
    """What decides whether a file is bad. `span`: steps of a clip, in frames, or in ticks of `rate` per second; a
    damaged file must have them before its first error, and under `refuse` a sound one, too."""

    decoder: Literal["pyav", "torchcodec"]
    span: int
    rate: float | None
    refuse: bool


class Prepare(Section):
    """Index a data set: clips, groups, splits, classes, and which files are bad. No pixels go into the artifact; the
    decoded frames go to the clip cache on the way. `reading` is None for simulated sets, which need no decoding."""

    kind: Literal["prepare"] = "prepare"
    version: Literal[2] = 2
    data: Data
    fingerprint: str | None
    reading: Reading | None


class Weaken(Section):
    """Give the training clips their labels: clean, noisy or none. `clip` is there where the noise depends on looks."""

    kind: Literal["weaken"] = "weaken"
    version: Literal[1] = 1
    labels: Labels
    clip: Clip | None


class Teach(Section):
    """Train one network by cross-entropy, or take its weights as they are (`phase` None)."""

    kind: Literal["teach"] = "teach"
    version: Literal[2] = 2
    arch: Arch
    input: Input | None
    weights: Weights | None
    labels: Literal["same", "all"]
    phase: PhaseWork | None
    clip: Clip
    augment: Augment
    seed: int


class Distill(Section):
    """One hop of the cascade: a student trained by its phases against a teacher."""

    kind: Literal["distill"] = "distill"
    version: Literal[2] = 2
    arch: Arch
    input: Input | None
    weights: Weights | None
    cut: Cut
    teacher: Arch
    teacher_input: Input | None
    teacher_cut: Cut
    phases: tuple[PhaseWork, ...]
    clip: Clip
    augment: Augment
    seed: int


class Evaluate(Section):
    """Measure one network on one split."""

    kind: Literal["evaluate"] = "evaluate"
    version: Literal[2] = 2
    arch: Arch
    input: Input | None
    clip: Clip
    split: Literal["val", "test"]
    clips: int
    crops: Literal[1, 3]
    batch: int


# The method issue adds `Refine` here: labels made anew from out-of-fold predictions, between two hops.
Work: TypeAlias = Annotated[Prepare | Weaken | Teach | Distill | Evaluate, Field(discriminator="kind")]
TRAINS = ("teach", "distill")
