"""The whole spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stagedkd.spec.schema.base import Section, Seed
from stagedkd.spec.schema.data import Data, Labels, Refine
from stagedkd.spec.schema.distill import Distill
from stagedkd.spec.schema.networks import Cascade, Student, Teacher
from stagedkd.spec.schema.training import Batch, Train
from stagedkd.spec.schema.views import Augment, Clip


class Evaluate(Section):
    """What is reported."""

    split: Literal["val", "test"] = "val"
    """The split on which figures are reported; test is for once, at the end."""
    clips: Annotated[int, Field(ge=1, le=100)] = 1
    """Views of a video in time, averaged."""
    crops: Literal[1, 3] = 1
    """Views along the longer side, averaged."""
    batch: Batch = 64
    """Clips evaluated at once."""


class Spec(Section):
    """A whole experiment."""

    data: Data
    """The clips: simulated, or videos on the disk."""
    clip: Clip = Clip()
    """What a network sees of a video."""
    augment: Augment = Augment()
    """Random views of training clips."""
    labels: Labels = Labels()
    """How many labels the training clips keep, and how noisy they are."""
    refine: Refine | None = None
    """How weak labels are made better."""
    train: Train = Train()
    """How networks are trained, unless they say otherwise."""
    teacher: Teacher
    """The large network."""
    co_teachers: tuple[Teacher, ...] = ()
    """More teachers, whose logits guide the first hop together with the teacher's (each loss is their mean, weighted by
    `share`); features are held against the teacher's alone."""
    cascade: Cascade = ()
    """Assistants between teacher and student (TAKD, Mirzadeh et al. 2020), largest first: shares of the teacher's
    parameters to which the student is widened, or networks in full; auto: as few as keep every hop within 8x."""
    student: Student
    """The small network that is wanted."""
    distill: Distill
    """Phases and losses of every hop."""
    evaluate: Evaluate = Evaluate()
    """What is reported."""
    control: Literal["ce"] | None = None
    """ce adds a student trained by cross-entropy alone, for equal steps."""
    seed: Seed = 0
    """Seed of the student's initialisation and order."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=,+-]*$", max_length=120)]
    """Name of the results' folder; unset: the file's."""
