"""The networks between teacher and student. Shares of the teacher's size become widths of the student."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import NetworkFields, Spec, Student, TrainPatch, Widened, arch_of
from stagedkd.spec.yaml import Path_

LARGEST_HOP = 8.0


def assistants(spec: Spec) -> tuple[Student, ...]:
    """Return the cascade's assistants as full networks, largest first.

    An assistant that is given by its share is the widened student with the student's `train` and `epochs`, except for
    what it sets itself.

    Raises:
        ValueError: the cascade has shares, but a size is unknown or the student cannot be widened.
    """
    if spec.cascade == "auto":
        return _without_twins(spec, tuple(_widened_student(spec, Widened(share=share)) for share in _auto_shares(spec)))
    return tuple(
        item if isinstance(item, NetworkFields) else _widened_student(spec, _as_widened(item)) for item in spec.cascade
    )


def _as_widened(item: Widened | float) -> Widened:
    return item if isinstance(item, Widened) else Widened(share=item)


def settings_of(spec: Spec, number: int) -> Path_:
    """Return the path of assistant `number` (from 0) in the spec; ("student",) if it has the student's settings."""
    item = spec.cascade[number] if spec.cascade != "auto" else None
    if isinstance(item, NetworkFields) or (isinstance(item, Widened) and item.train.warmup_epochs is not None):
        return ("cascade", number)
    return ("student",)


def cascade_problems(spec: Spec, listed: tuple[Student, ...]) -> Iterator[PathProblem]:
    """Check that each share gives an assistant of a size of its own, below the teacher's.

    Args:
        listed: the assistants, from `assistants`.
    """
    items = spec.cascade if spec.cascade != "auto" else ()
    shares = [_as_widened(item).share for item in items if not isinstance(item, NetworkFields)]
    if shares != sorted(shares, reverse=True):
        ordered = ", ".join(f"{share:g}" for share in sorted(shares)[::-1])
        yield PathProblem("shares must go from large to small", ("cascade",), f"write [{ordered}]")
        return
    for i, item in enumerate(items):
        message = "" if isinstance(item, NetworkFields) else _twin(spec, listed, i)
        size, most = listed[i].trunk_params or 0, spec.teacher.trunk_params or 0
        if not message and not isinstance(item, NetworkFields) and size >= most:
            message = f"assistant {i + 1} is as large as the teacher ({size:,} of {most:,} parameters)"
        if message and not isinstance(item, NetworkFields):
            yield PathProblem(message, ("cascade", i), _nearest(spec, listed, _as_widened(item).share))


def twin_notes(spec: Spec) -> Iterator[PathProblem]:
    """Find assistants in full that are the student or an earlier assistant again: allowed, since generations of one
    network are a method (Furlanello et al. 2018), but probably not meant."""
    listed = assistants(spec)
    for i, item in enumerate(spec.cascade if spec.cascade != "auto" else ()):
        if isinstance(item, NetworkFields) and (message := _twin(spec, listed, i)):
            yield PathProblem(message, ("cascade", i), "remove it, or change its size, unless it is meant")


def _twin(spec: Spec, listed: tuple[Student, ...], number: int) -> str:
    """Return in words which network assistant `number` (from 0) repeats; "" for none."""
    assistant = listed[number]
    if arch_of(assistant) == arch_of(spec.student):
        return f"assistant {number + 1} is the student itself ({assistant.title}): it would be trained twice"
    twin = next((j for j in range(number) if arch_of(listed[j]) == arch_of(assistant)), None)
    return "" if twin is None else f"assistant {number + 1} is assistant {twin + 1} again ({assistant.title})"


def _nearest(spec: Spec, listed: tuple[Student, ...], wanted: float) -> str:
    """Return a hint: the shares nearest to `wanted` whose sizes exist and which no assistant has."""
    student = spec.student
    most, least = spec.teacher.trunk_params or 0, student.trunk_params or 0
    taken = {network.trunk_params for network in listed}
    free = [(params, name) for params, name in student.widths if least < params < most and params not in taken]
    free = sorted(sorted(free, key=lambda row: abs(row[0] - wanted * most))[:3], reverse=True)
    if not free:
        return "no size between student and teacher is left: remove it"
    rows = ", ".join(f"{_few_digits(params / most)} ({name})" for params, name in free)
    return f"shares with a size of their own: {rows}; or remove it"


def _few_digits(share: float) -> str:
    return f"{share:.2g}" if share < 0.995 else f"{share:.4g}"


def _without_twins(spec: Spec, listed: tuple[Student, ...]) -> tuple[Student, ...]:
    """Leave out assistants of the size of the student, of the teacher, or of one before: a width may not be finer."""
    kept: list[Student] = []
    above = spec.teacher.trunk_params or 0
    for assistant in listed:
        size = assistant.trunk_params or 0
        if (spec.student.trunk_params or 0) < size < above:
            kept.append(assistant)
            above = size
    return tuple(kept)


def _widened_student(spec: Spec, item: Widened) -> Student:
    """Return the student at the width that has this share of the teacher's parameters."""
    student, total = spec.student, spec.teacher.trunk_params
    assistant = student.widened(item.share * (total or 0))  # an unknown total is refused below, after the family
    if assistant is None:
        raise ValueError(
            f"shares work only for a resnet3d student, not for {student.arch}: list the assistants in full"
        )
    if total is None:
        raise ValueError("shares need the teacher's size: set teacher.params")
    train = student.train.model_dump(exclude_none=True) | item.train.model_dump(exclude_none=True)
    update = {"weights": None, "train": TrainPatch(**train), "epochs": item.epochs or student.epochs, "quantise": None}
    return assistant.model_copy(update=update)


def _auto_shares(spec: Spec) -> list[float]:
    """Return the shares, in geometric progression, of as few assistants as keep every hop within 8x."""
    teacher, student = spec.teacher.trunk_params, spec.student.trunk_params
    if teacher is None or student is None:
        raise ValueError("cascade: auto needs the sizes of teacher and student: set params")
    hops = max(1, math.ceil(math.log(max(1.0, teacher / student)) / math.log(LARGEST_HOP) - 1e-9))
    return [(student / teacher) ** (i / hops) for i in range(1, hops)]
