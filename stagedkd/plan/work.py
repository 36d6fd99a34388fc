"""The closed union of work: what a stage does, with everything resolved. Names stay out of keys, as `unkeyed` says."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from stagedkd.spec.schema import Arch, Augment, Clip, Data, Input, Labels, Losses, Section, Train
from stagedkd.spec.schema import Refine as Rule

Cut: TypeAlias = tuple[tuple[str, ...], ...]


class Weights(Section):
    """A weight file: its name as the user gave it, and its SHA-256 from the lock (None: unlocked)."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    sha256: str | None


class PhaseWork(Section):
    """One phase of training. `trained` are the numbers of the trained substages, `frozen` of those that run frozen
    below them, `pairs` (student, teacher) those that are compared, all from 0; `head`: logits are made and the head
    trained; `stop`: epochs that are run, of those that the schedule is made for; None: all."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    epochs: int
    stop: int | None = None
    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    ramp: float | None = None
    head: bool
    losses: Losses
    train: Train

    @property
    def run_epochs(self) -> int:
        """Epochs that are run."""
        return self.stop or self.epochs


class Reading(Section):
    """What decides whether a file is bad. `span`: steps of a clip, in frames, or in ticks of `rate` per second; a
    damaged file must have them before its first error, and under `refuse` a sound one, too."""

    decoder: Literal["pyav", "torchcodec"]
    span: int
    rate: float | None
    refuse: bool


class PrepareWork(Section):
    """Index a data set: clips, groups, splits, classes, and which files are bad. No pixels go into the artifact; the
    decoded frames go to the clip cache on the way. `reading` is None for simulated sets, which need no decoding."""

    kind: Literal["prepare"] = "prepare"
    version: Literal[2] = 2
    data: Data
    fingerprint: str | None
    reading: Reading | None


class WeakenWork(Section):
    """Give the training clips their labels: clean, noisy or none. `clip` is there where the noise depends on looks."""

    kind: Literal["weaken"] = "weaken"
    version: Literal[1] = 1
    labels: Labels
    clip: Clip | None


class TeachWork(Section):
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


class Guide(Section):
    """A network whose logits guide a hop beside the teacher's, and its weight among them all."""

    arch: Arch
    input: Input | None
    share: float


class Trainee(Section):
    """A network that is trained out of fold: `by` says in which role it stands in the cascade."""

    by: Literal["teacher", "student"]
    arch: Arch
    input: Input | None
    weights: Weights | None
    phase: PhaseWork


class RefineWork(Section):
    """One round of refined labels. `networks` are trained out of fold by their phase; `rule` is the spec's section with
    only what a round needs."""

    kind: Literal["refine"] = "refine"
    version: Literal[1] = 1
    rule: Rule
    round: int
    networks: tuple[Trainee, ...]
    clip: Clip
    augment: Augment


class DistillWork(Section):
    """One hop of the cascade: a student trained by its phases against a teacher and further guides, which have the
    roles guide-1, guide-2, ... `share` is the teacher's weight among them, `drop` the chance of each to be left out of
    a step."""

    kind: Literal["distill"] = "distill"
    version: Literal[4] = 4
    arch: Arch
    input: Input | None
    weights: Weights | None
    cut: Cut
    teacher: Arch
    teacher_input: Input | None
    teacher_cut: Cut
    share: float = 1.0
    guides: tuple[Guide, ...] = ()
    drop: float = 0.0
    pairing: Literal["pairs", "correlation", "review"] = "pairs"
    pair_weights: Literal["uniform", "trust", "deficit"] = "uniform"
    normalize: Literal["first_epoch"] | None = None
    warm_start: bool = False
    shuffle: bool = False
    phases: tuple[PhaseWork, ...]
    clip: Clip
    augment: Augment
    seed: int


class EvaluateWork(Section):
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


Work: TypeAlias = Annotated[
    PrepareWork | WeakenWork | TeachWork | RefineWork | DistillWork | EvaluateWork, Field(discriminator="kind")
]
