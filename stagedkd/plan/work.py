"""Work: what a stage does, with every value resolved. The kinds of work form a closed union.

The fields of a work enter its key, except those listed in `unkeyed`, such as names. Each kind also states everything
that the rest of the project must know about it (see `WorkSection`), so that no other module has to ask which kind a
work is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from stagedkd.plan.lock import data_id
from stagedkd.spec.schema import (
    Arch,
    Augment,
    Clip,
    Data,
    DeclaredLabels,
    Frames,
    Input,
    Labels,
    Losses,
    Section,
    Sees,
    Train,
)
from stagedkd.spec.schema import Refine as Rule

KIND_FORM = "[a-z]+"  # the form of a kind's name, with which the names of folders begin
CLIPS: Mapping[str, tuple[str, ...]] = {"data": ("prepare",), "labels": ("weaken",)}  # inputs of what trains
NETWORKS = ("teach", "distill")  # the kinds of work that make a network
Cut: TypeAlias = tuple[tuple[str, ...], ...]


class Weights(Section):
    """A weight file: its name as the user wrote it, and its SHA-256; None if the lock does not have it. `version` is
    raised when a file is fitted to a network in another way."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    sha256: str | None
    version: Literal[2] = 2


class PhaseWork(Section):
    """One phase of training. Substages are counted from 0.

    Attributes:
        epochs: the epochs that the learning-rate schedule is made for.
        stop: the number of these epochs that are run; None means all.
        trained: the substages that are trained. If a whole network is one substage, () trains its head alone.
        frozen: the substages that run frozen.
        pairs: the pairs (student's substage, teacher's substage) that are compared.
        ramp: the epochs over which a pair's feature losses rise from 0, one pair after the other; None: all at once.
        head: whether the head is run and trained, so that there are logits.
        quantised: int8: the network computes rounded numbers from this phase on.
    """

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
    quantised: Literal["int8"] | None = None

    @property
    def run_epochs(self) -> int:
        """The number of epochs that are run."""
        return self.stop or self.epochs


class Reading(Section):
    """The settings that decide whether a video file is bad.

    Attributes:
        decoder: the library that decodes.
        span: the length of a clip, in frames, or in ticks of `rate` per second. A damaged file is bad if it has less
            before its first error.
        rate: ticks per second; None if `span` counts frames.
        refuse: whether a sound file that is shorter than `span` is bad, too.
        version: is raised when files are decoded in another way, since frames and sizes may then be others.
    """

    decoder: Literal["pyav", "torchcodec"]
    span: int
    rate: float | None
    refuse: bool
    version: Literal[2] = 2


@dataclass(frozen=True)
class OutputNetwork:
    """The network that a stage makes: its architecture, and its input if it does not see the spec's clips."""

    arch: Arch
    input: Input | None


class WorkSection(Section):
    """The base of all kinds of work. Its members are what each kind must state about itself, beside the fields that are
    its key.

    A class that has a field `kind` but lacks a member without a default raises TypeError when it is defined. So does a
    class with a field that has the name of a member: pydantic would take the member for the field's default, and that
    changes keys.
    """

    network_file: ClassVar[str | None]  # the artifact's file that holds the network; None if it makes none

    @property
    @abstractmethod
    def network(self) -> OutputNetwork | None:
        """The network that this work makes; None if it makes none."""

    @property
    @abstractmethod
    def trainings(self) -> tuple[PhaseWork, ...]:
        """The phases of training; () if nothing is trained."""

    @property
    @abstractmethod
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        """The weight files that training starts from, each with the architecture that it belongs to."""

    @property
    @abstractmethod
    def view(self) -> Clip | None:
        """The clips that the networks of this work see; None if it has no network."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        """The kinds of work that each input may be of, by the name of the input; "" among them: it may be missing."""

    @property
    def data_set(self) -> Data | None:
        """The data set that this work reads from the disk; None if its data come from another stage."""
        return None

    @property
    def epochs_run(self) -> int:
        """The epochs of all trainings together."""
        return sum(phase.run_epochs for phase in self.trainings)

    @property
    def reads_lock(self) -> bool:
        """Whether this work's own fields come from stagedkd.lock: it reads a data set that needs an entry, or weight
        files."""
        return bool(self.weight_files) or (self.data_set is not None and data_id(self.data_set) is not None)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "kind" not in cls.model_fields:
            return  # the base of several kinds
        missing = sorted(cls.__abstractmethods__)
        missing += [name for name in WorkSection.__annotations__ if not hasattr(cls, name)]
        missing += [name for name in ("version",) if name not in cls.model_fields]
        if missing:
            raise TypeError(f"{cls.__name__} does not define: {', '.join(missing)}")
        clashes = sorted(set(cls.model_fields) & set(vars(WorkSection)))
        if clashes:
            raise TypeError(f"{cls.__name__} has fields with names of members of WorkSection: {', '.join(clashes)}")
        kind = str(cls.model_fields["kind"].default)
        if not re.fullmatch(KIND_FORM, kind):
            raise TypeError(f"{cls.__name__}: the kind '{kind}' names folders, so it may have only the letters a-z")


class UntrainedWork(WorkSection):
    """The base of the kinds of work that train nothing and make no network."""

    network_file: ClassVar[str | None] = None

    @property
    def network(self) -> OutputNetwork | None:
        return None

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return ()

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ()


class PrepareWork(UntrainedWork):
    """Index a data set: clips, groups, splits, classes, and which files are bad. The artifact holds no pixels; decoded
    frames go to the clip cache on the way. `fingerprint` is the data set's entry in the lock, None if there is none.
    `reading` is None for simulated sets, which need no decoding."""

    kind: Literal["prepare"] = "prepare"
    version: Literal[2] = 2
    data: Data
    fingerprint: str | None
    reading: Reading | None

    @property
    def view(self) -> Clip | None:
        return None

    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    @property
    def data_set(self) -> Data:
        return self.data


class WeakenWork(UntrainedWork):
    """Give each training clip its label: clean, noisy or none. `clip` is None unless the noise depends on pixels."""

    kind: Literal["weaken"] = "weaken"
    version: Literal[1] = 1
    labels: Labels
    clip: Clip | None

    @property
    def view(self) -> Clip | None:
        return None  # no network sees `clip`

    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {"data": ("prepare",)}


class NetworkWork(WorkSection):
    """Work that trains one network `arch` on clips and keeps it. The training starts from the file `weights`, if
    given, else from the seed. `sees` is the part of the training clips that it may see; None means all."""

    arch: Arch
    input: Input | None
    weights: Weights | None
    clip: Clip
    augment: Augment
    seed: int
    sees: Sees | None = None

    @property
    def network(self) -> OutputNetwork:
        return OutputNetwork(self.arch, self.input)

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ((self.arch, self.weights),) if self.weights else ()

    @property
    def view(self) -> Clip:
        return self.clip

    def clips_seen(self, total: int) -> int:
        """How many of `total` training clips it sees; about that many where whole groups are drawn."""
        return total if self.sees is None else min(total, self.sees.clips_of(total))

    @property
    def quantised(self) -> Literal["int8"] | None:
        """How the network computes at the end; None: in float32."""
        phases = self.trainings
        return phases[-1].quantised if phases else None


class TeachWork(NetworkWork):
    """Train one network by cross-entropy; without a `phase`, use its weights as they are. `labels` says whether it
    learns from the labels of the other networks ("same"), from the true labels of all training clips ("all"), or from
    the labels that the input `refined` accepts ("refined"). Given `avoids`, it sees the clips that a network of
    `sees: avoids` does not see.
    `declared` are the labels behind its weights, as the user knows them, for reports alone. `headless` allows weights
    without a head for the classes, since no loss compares logits."""

    # `headless` changes no tensor: it says whether a network without a head is refused.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"declared", "headless"})
    network_file: ClassVar[str | None] = "teacher.safetensors"
    kind: Literal["teach"] = "teach"
    version: Literal[4] = 4
    labels: Literal["same", "all", "refined"]
    declared: DeclaredLabels | None = None
    headless: bool = False
    avoids: Sees | None = None
    phase: PhaseWork | None

    def clips_seen(self, total: int) -> int:
        return super().clips_seen(total) if self.avoids is None else max(0, total - self.avoids.clips_of(total))

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return (self.phase,) if self.phase else ()

    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {**CLIPS, **({"refined": ("refine", "")} if self.labels == "refined" else {})}


class GuideNetwork(Section):
    """A further guide of a hop: a network whose logits teach beside the teacher's. `share` is its weight among all
    guides, the teacher included."""

    arch: Arch
    input: Input | None
    share: float


class Trainee(Section):
    """A network that a refinement round trains out of fold. `by` says whether it has the architecture of the hop's
    teacher or of the student."""

    by: Literal["teacher", "student"]
    arch: Arch
    input: Input | None
    weights: Weights | None
    phase: PhaseWork


class RefineWork(WorkSection):
    """One round of label refinement. Each of the `networks` is trained out of fold by its phase. `rule` is the spec's
    section `refine`, with fields that its kind does not use set to fixed values."""

    network_file: ClassVar[str | None] = None  # the networks are not kept
    kind: Literal["refine"] = "refine"
    version: Literal[4] = 4
    rule: Rule
    round: int
    networks: tuple[Trainee, ...]
    clip: Clip
    augment: Augment

    @property
    def network(self) -> OutputNetwork | None:
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
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {**CLIPS, **({"previous": ("refine",)} if self.round > 1 else {})}

    @property
    def epochs_run(self) -> int:
        return self.rule.folds * super().epochs_run


class DistillWork(NetworkWork):
    """One hop of the cascade: a student is trained in phases by a teacher and further guides, which are the inputs
    guide-1, guide-2, ... `share` is the teacher's weight among all guides. `drop` is each guide's probability to be
    left out of a step; one always stays."""

    network_file: ClassVar[str | None] = "student.safetensors"
    kind: Literal["distill"] = "distill"
    version: Literal[7] = 7
    cut: Cut
    teacher: Arch
    teacher_input: Input | None
    teacher_cut: Cut
    share: float = 1.0
    guides: tuple[GuideNetwork, ...] = ()
    drop: float = 0.0
    pairing: Literal["pairs", "correlation", "review"] = "pairs"
    pair_weights: Literal["uniform", "trust", "deficit"] = "uniform"
    normalize: Literal["first_epoch"] | None = None
    warm_start: bool = False
    shuffle: bool = False
    phases: tuple[PhaseWork, ...]

    @property
    def guide_inputs(self) -> tuple[str, ...]:
        """The names of the inputs that give the further guides, in the order of `guides`."""
        return tuple(f"guide-{i}" for i in range(1, len(self.guides) + 1))

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return self.phases

    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {**CLIPS, **dict.fromkeys(("teacher", *self.guide_inputs), NETWORKS), "refined": ("refine", "")}


class EvaluateWork(UntrainedWork):
    """Measure one network on one split of the data, with the `frames` of each clip as they are (None), shuffled, or one
    alone."""

    kind: Literal["evaluate"] = "evaluate"
    version: Literal[4] = 4
    arch: Arch
    input: Input | None
    clip: Clip
    split: Literal["val", "test"]
    clips: int
    crops: Literal[1, 3]
    batch: int
    frames: Frames | None = None

    @property
    def view(self) -> Clip:
        return self.clip

    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {"data": ("prepare",), "network": NETWORKS}


Work: TypeAlias = Annotated[
    PrepareWork | WeakenWork | TeachWork | RefineWork | DistillWork | EvaluateWork, Field(discriminator="kind")
]

KINDS: tuple[str, ...] = tuple(section.model_fields["kind"].default for section in get_args(get_args(Work)[0]))
