"""Work: what a stage does, with every value resolved. The kinds of work form a closed union. What each kind must state
about itself is in kind.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from stagedkd.plan.kind import Cut, OutputNetwork, PhaseWork, UntrainedWork, Weights, WorkSection
from stagedkd.spec.schema import (
    Arch,
    Augment,
    Clip,
    Data,
    DeclaredLabels,
    Frames,
    Input,
    Labels,
    Section,
    Sees,
)
from stagedkd.spec.schema import Refine as Rule

CLIPS: Mapping[str, tuple[str, ...]] = {"data": ("prepare",), "labels": ("weaken",)}  # inputs of what trains
NETWORKS = ("teach", "distill")  # the kinds of work that make a network


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
    pairing: Literal["pairs", "correlation", "mixed", "review"] = "pairs"
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
