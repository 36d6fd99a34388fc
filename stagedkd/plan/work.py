"""The closed union of work: what a stage does, with everything resolved. Names stay out of keys, as `unkeyed` says.

Every kind of work says here what the rest of the project must know of it (`WorkSection`), so that nobody else asks
which kind it is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from stagedkd.plan.lock import data_id
from stagedkd.spec.schema import Arch, Augment, Clip, Data, Input, Labels, Losses, Section, Train
from stagedkd.spec.schema import Refine as Rule

KIND_FORM = "[a-z]+"  # of the name of a kind, which begins the names of folders
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


@dataclass(frozen=True)
class MadeNetwork:
    """The network that a stage makes: its architecture, and the clips that it sees where they are not the spec's."""

    arch: Arch
    input: Input | None


class WorkSection(Section):
    """Base of all kinds of work: what each must say of itself, beside the fields that are its key. A class that has a
    `kind` and leaves out a member without a default raises TypeError when it is defined.

    No member may have the name of a field of a kind: pydantic would take it for the field's default, which changes
    keys. That raises TypeError, too.
    """

    network_file: ClassVar[str | None]  # the file of the artifact that holds the network; None: it makes none

    @property
    @abstractmethod
    def network(self) -> MadeNetwork | None:
        """The network that is made, to be measured beforehand and evaluated afterwards."""

    @property
    @abstractmethod
    def trainings(self) -> tuple[PhaseWork, ...]:
        """The phases that are trained; none where nothing is."""

    @property
    @abstractmethod
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        """The weight files that it starts from, each with the network it is for."""

    @property
    @abstractmethod
    def view(self) -> Clip | None:
        """The clips that its networks see; None where there is no network."""

    @property
    def data_set(self) -> Data | None:
        """The data set that it reads itself, not from another stage."""
        return None

    @property
    def epochs_run(self) -> int:
        """Epochs of all trainings together."""
        return sum(phase.run_epochs for phase in self.trainings)

    @property
    def reads_lock(self) -> bool:
        """Whether its key rests on stagedkd.lock itself: on a data set that has an entry, or on weight files."""
        return bool(self.weight_files) or (self.data_set is not None and data_id(self.data_set) is not None)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "kind" not in cls.model_fields:
            return  # a base of several kinds
        missing = sorted(cls.__abstractmethods__)
        missing += [name for name in WorkSection.__annotations__ if not hasattr(cls, name)]
        missing += [name for name in ("version",) if name not in cls.model_fields]
        if missing:
            raise TypeError(f"{cls.__name__} does not say: {', '.join(missing)}")
        taken = sorted(set(cls.model_fields) & set(vars(WorkSection)))
        if taken:
            raise TypeError(f"{cls.__name__} has fields that are named as members of WorkSection: {', '.join(taken)}")
        kind = str(cls.model_fields["kind"].default)
        if not re.fullmatch(KIND_FORM, kind):
            raise TypeError(f"{cls.__name__}: its kind '{kind}' begins names of folders: a-z alone")


class UntrainedWork(WorkSection):
    """Base of the kinds of work that train nothing and make no network."""

    network_file: ClassVar[str | None] = None

    @property
    def network(self) -> MadeNetwork | None:
        return None

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return ()

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ()


class PrepareWork(UntrainedWork):
    """Index a data set: clips, groups, splits, classes, and which files are bad. No pixels go into the artifact; the
    decoded frames go to the clip cache on the way. `reading` is None for simulated sets, which need no decoding."""

    kind: Literal["prepare"] = "prepare"
    version: Literal[2] = 2
    data: Data
    fingerprint: str | None
    reading: Reading | None

    @property
    def view(self) -> Clip | None:
        return None

    @property
    def data_set(self) -> Data:
        return self.data


class WeakenWork(UntrainedWork):
    """Give the training clips their labels: clean, noisy or none. `clip` is there where the noise depends on looks."""

    kind: Literal["weaken"] = "weaken"
    version: Literal[1] = 1
    labels: Labels
    clip: Clip | None

    @property
    def view(self) -> Clip | None:
        return None  # `clip` is seen by no network


class TeachWork(WorkSection):
    """Train one network by cross-entropy, or take its weights as they are (`phase` None)."""

    network_file: ClassVar[str | None] = "teacher.safetensors"
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

    @property
    def network(self) -> MadeNetwork:
        return MadeNetwork(self.arch, self.input)

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return (self.phase,) if self.phase else ()

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ((self.arch, self.weights),) if self.weights else ()

    @property
    def view(self) -> Clip:
        return self.clip


class Guide(Section):
    """A network whose logits guide a hop beside the teacher's, and its weight among them all."""

    arch: Arch
    input: Input | None
    share: float


class Trainee(Section):
    """A network that is trained out of fold: `by` says which end of a hop it is."""

    by: Literal["teacher", "student"]
    arch: Arch
    input: Input | None
    weights: Weights | None
    phase: PhaseWork


class RefineWork(WorkSection):
    """One round of refined labels. `networks` are trained out of fold by their phase; `rule` is the spec's section with
    only what a round needs."""

    network_file: ClassVar[str | None] = None  # its networks are thrown away
    kind: Literal["refine"] = "refine"
    version: Literal[1] = 1
    rule: Rule
    round: int
    networks: tuple[Trainee, ...]
    clip: Clip
    augment: Augment

    @property
    def network(self) -> MadeNetwork | None:
        return None

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return tuple(trainee.phase for trainee in self.networks)

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return tuple((trainee.arch, trainee.weights) for trainee in self.networks if trainee.weights)

    @property
    def view(self) -> Clip:
        return self.clip

    @property
    def epochs_run(self) -> int:
        return self.rule.folds * super().epochs_run


class DistillWork(WorkSection):
    """One hop of the cascade: a student trained by its phases against a teacher and further guides, which are its
    inputs guide-1, guide-2, ... `share` is the teacher's weight among them, `drop` the chance of each to be left out of
    a step."""

    network_file: ClassVar[str | None] = "student.safetensors"
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

    @property
    def network(self) -> MadeNetwork:
        return MadeNetwork(self.arch, self.input)

    @property
    def guide_inputs(self) -> tuple[str, ...]:
        """The inputs that give the guides, in their order."""
        return tuple(f"guide-{i}" for i in range(1, len(self.guides) + 1))

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return self.phases

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ((self.arch, self.weights),) if self.weights else ()

    @property
    def view(self) -> Clip:
        return self.clip


class EvaluateWork(UntrainedWork):
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

    @property
    def view(self) -> Clip:
        return self.clip


Work: TypeAlias = Annotated[
    PrepareWork | WeakenWork | TeachWork | RefineWork | DistillWork | EvaluateWork, Field(discriminator="kind")
]

KINDS: tuple[str, ...] = tuple(section.model_fields["kind"].default for section in get_args(get_args(Work)[0]))
