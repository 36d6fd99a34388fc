"""The networks between teacher and student: shares of the teacher's size made into widths."""

from __future__ import annotations

import math

from stagedkd.spec.schema import NetworkFields, Spec, Student, TrainPatch

LARGEST_HOP = 8.0


def assistants(spec: Spec) -> tuple[Student, ...]:
    """The cascade's assistants as full networks, largest first.

    Raises:
        ValueError: shares are given where sizes are unknown or the student cannot be widened.
    """
    if spec.cascade == "auto":
        return tuple(_widened(spec, share) for share in _auto_shares(spec))
    return tuple(item if isinstance(item, NetworkFields) else _widened(spec, item) for item in spec.cascade)


def _widened(spec: Spec, share: float) -> Student:
    """The student's shape at another width, without its training settings: tuning the student moves no assistant."""
    student, total = spec.student, spec.teacher.trunk_params
    assistant = student.widened(share * (total or 0))  # an unknown total is refused below, after the family
    if assistant is None:
        raise ValueError(f"shares widen a resnet3d; this student is {student.arch}: list its assistants in full")
    if total is None:
        raise ValueError("shares need the teacher's size: state params: at the teacher")
    return assistant.model_copy(update={"weights": None, "train": TrainPatch()})


def _auto_shares(spec: Spec) -> list[float]:
    """As few assistants as keep every hop within 8x, in a geometric row."""
    teacher, student = spec.teacher.trunk_params, spec.student.trunk_params
    if teacher is None or student is None:
        raise ValueError("cascade: auto needs the sizes of teacher and student: state params:")
    hops = max(1, math.ceil(math.log(max(1.0, teacher / student)) / math.log(LARGEST_HOP) - 1e-9))
    return [(student / teacher) ** (i / hops) for i in range(1, hops)]
