"""The networks between teacher and student. Shares of the teacher's size become widths of the student."""

from __future__ import annotations

import math

from stagedkd.spec.schema import NetworkFields, Spec, Student, TrainPatch

LARGEST_HOP = 8.0


def assistants(spec: Spec) -> tuple[Student, ...]:
    """Return the cascade's assistants as full networks, largest first.

    Raises:
        ValueError: the cascade has shares, but a size is unknown or the student cannot be widened.
    """
    if spec.cascade == "auto":
        return tuple(_widened_student(spec, share) for share in _auto_shares(spec))
    return tuple(item if isinstance(item, NetworkFields) else _widened_student(spec, item) for item in spec.cascade)


def _widened_student(spec: Spec, share: float) -> Student:
    """Return the student at the width that has this share of the teacher's parameters.

    The training settings of the student are left out, so that tuning the student changes no assistant.
    """
    student, total = spec.student, spec.teacher.trunk_params
    assistant = student.widened(share * (total or 0))  # an unknown total is refused below, after the family
    if assistant is None:
        raise ValueError(
            f"shares work only for a resnet3d student, not for {student.arch}: list the assistants in full"
        )
    if total is None:
        raise ValueError("shares need the teacher's size: set teacher.params")
    return assistant.model_copy(update={"weights": None, "train": TrainPatch()})


def _auto_shares(spec: Spec) -> list[float]:
    """Return the shares, in geometric progression, of as few assistants as keep every hop within 8x."""
    teacher, student = spec.teacher.trunk_params, spec.student.trunk_params
    if teacher is None or student is None:
        raise ValueError("cascade: auto needs the sizes of teacher and student: set params")
    hops = max(1, math.ceil(math.log(max(1.0, teacher / student)) / math.log(LARGEST_HOP) - 1e-9))
    return [(student / teacher) ** (i / hops) for i in range(1, hops)]
