"""The whole spec."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PrivateAttr

from stagedkd.errors import Origin
from stagedkd.spec.schema.base import Section, Seed
from stagedkd.spec.schema.data import Data, Labels, Refine
from stagedkd.spec.schema.distill import Distill
from stagedkd.spec.schema.networks import Cascade, Student, Teacher
from stagedkd.spec.schema.training import Batch, Train, TrainPatch
from stagedkd.spec.schema.views import Augment, Clip, Frames


class Evaluate(Section):
    """The evaluation that is reported."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"every"})
    split: Literal["val", "test"] = "val"
    """Split whose metrics are reported. Use test only once, at the end."""
    clips: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of views of a video along time, whose outputs are averaged."""
    crops: Literal[1, 3] = 1
    """Number of views along the longer side, whose outputs are averaged."""
    batch: Batch = 64
    """Number of clips evaluated at once."""
    frames: Frames | None = None
    """A control of what the task needs, in the place of the clips as they are. shuffled: the frames of each clip in a
    drawn order, which must hurt where motion tells the classes apart. single: the middle frame alone, repeated, which
    must not be enough. Every report says so. Trainings are not touched. Unset: the clips as they are."""
    every: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Epochs between two looks at the validation split while a network trains, for curves and progress: one view of at
    most 256 of its clips, also where `split` is test. The last checkpoint is the result, whichever epoch was best. It
    changes no weight, so it is in no key. 0: never. Unset: 1, or more where an epoch has few clips, so that validation
    takes a small part of the training's time."""


class Spec(Section):
    """A whole experiment."""

    data: Data
    """The clips: simulated clips, or videos on the disk."""
    clip: Clip = Clip()
    """The view of a video that networks see."""
    augment: Augment = Augment()
    """Random views of training clips."""
    labels: Labels = Labels()
    """How many training clips keep their label, and how noisy the labels are."""
    refine: Refine | None = None
    """How weak labels are refined. Unset: they are not refined."""
    train: Train = Train()
    """How networks are trained, unless they override it."""
    teacher: Teacher
    """The large network."""
    co_teachers: tuple[Teacher, ...] = ()
    """More teachers, whose logits guide the first hop together with those of the teacher. Each loss is the mean over
    the teachers, weighted by `share`. Features are compared only with those of the teacher."""
    cascade: Cascade = ()
    """Assistants between teacher and student (TAKD, Mirzadeh et al. 2020), largest first. A number is a share of the
    teacher's parameters, to which the student is widened; it has the student's `train` and `epochs`. A map with `share`
    is the same with its own: {share: 0.25, train: {lr: 1e-3}}. Any other map is a network in full, with the defaults of
    `train` for what it does not set. auto: as few assistants, by shares, as keep every hop within 8x."""
    student: Student
    """The small network, which is the result."""
    distill: Distill
    """The phases and losses of every hop."""
    evaluate: Evaluate = Evaluate()
    """The evaluation that is reported."""
    control: Literal["ce"] | None = None
    """ce: also train a student by cross-entropy alone, for the same number of steps."""
    control_train: TrainPatch = TrainPatch()
    """Overrides train for the control. Unset: the control is trained like the student."""
    seed: Seed = 0
    """Seed of the student's initialisation and of the order of its clips."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=,+-]*$", max_length=120)]
    """Name of the results folder. Unset: the name of the file."""
    _origin: Origin = PrivateAttr(default=Origin())

    @property
    def origin(self) -> Origin:
        """The file and the options that the spec was loaded with, for hints."""
        return self._origin

    def loaded_from(self, origin: Origin) -> Spec:
        """Return the spec with its origin."""
        spec = self.model_copy()
        spec._origin = origin
        return spec
