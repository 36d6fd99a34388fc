"""Rules of the learning rate: a warm-up ends before its phase does; a schedule over a hop is that of all its phases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from stagedkd.spec.cuts import student_cut
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schedule import phase_epochs
from stagedkd.spec.schema import Spec, Student, Teacher, TrainPatch
from stagedkd.spec.yaml import Path_

FIELD = "warmup_epochs"


def rate_problems(spec: Spec, listed: Sequence[tuple[Path_, Student]]) -> Iterator[PathProblem]:
    """Check the warm-ups and the schedules of every training.

    Args:
        listed: the assistants, each with the path of its own settings, which need not exist.
    """
    hops: list[tuple[Path_, str, Student]] = [(("student",), "the student", spec.student)]
    hops += [(path, f"assistant {i + 1}", network) for i, (path, network) in enumerate(listed)]
    teachers: list[tuple[Path_, str, Teacher]] = [(("teacher",), "the teacher", spec.teacher)]
    teachers += [(("co_teachers", i), f"teacher {i + 2}", t) for i, t in enumerate(spec.co_teachers)]
    rows = chain(
        (p for path, name, teacher in teachers for p in _teacher(spec, path, name, teacher)),
        (p for path, name, network in hops for p in _hop(spec, path, name, network)),
        _control(spec),
        _refinement(spec, listed),
    )
    seen: set[tuple[Path_, str]] = set()
    for phase, problem in rows:  # one line that is wrong for several networks is shown once
        if (problem.path, phase) not in seen:
            seen.add((problem.path, phase))
            yield problem


def _teacher(spec: Spec, path: Path_, name: str, teacher: Teacher) -> Iterator[tuple[str, PathProblem]]:
    stop = spec.distill.teacher.stop
    run = max(1, round(stop * teacher.epochs)) if stop is not None else teacher.epochs
    warmup = spec.train.patched(teacher.train).warmup_epochs
    if run and warmup >= run:
        stopped = f", stopped after {_epochs(run)}," if run < teacher.epochs else f" of {_epochs(run)}"
        message = f"the training of {name}{stopped} is all warm-up: {FIELD} is {warmup:g}"
        yield name, PathProblem(message, _place(path, teacher.train), f"set it below {run}, or raise its epochs")


def _hop(spec: Spec, path: Path_, name: str, network: Student) -> Iterator[tuple[str, PathProblem]]:
    """Check the phases of a hop: each for itself, or together under a schedule over the hop."""
    phases, base = spec.distill.phases, spec.train.patched(network.train)
    epochs = phase_epochs(phases, network.epochs or spec.student.epochs, len(student_cut(network)))
    trains = {key: base.patched(phase.train) for key, phase in phases.items()}
    if any(train.over_hop for train in trains.values()):
        yield from _over_hop(spec, path, name, network, sum(map(sum, epochs.values())))
        return
    for key, phase in phases.items():
        least, warmup = min(epochs[key]), trains[key].warmup_epochs
        if warmup < least:
            continue
        each = "each of its substages has" if len(epochs[key]) > 1 else "it has"
        message = f"phase '{key}' of {name} is all warm-up: {FIELD} is {warmup:g}, and {each} {_epochs(least)}"
        own = phase.train.warmup_epochs is not None
        place = ("distill", "phases", key, "train", FIELD) if own else _place(path, network.train)
        lower = f"set it below {least}" if own else f"add train: {{{FIELD}: 0}} to phase '{key}'"
        yield key, PathProblem(message, place, f"{lower}, or give the phase more epochs")


def _over_hop(spec: Spec, path: Path_, name: str, network: Student, total: int) -> Iterator[tuple[str, PathProblem]]:
    """Check a hop of `total` epochs, of which a phase has a schedule over the hop: all must have it, with one shape."""
    base = spec.train.patched(network.train)
    for key, phase in spec.distill.phases.items():
        below: Path_ = ("distill", "phases", key, "train")
        if phase.train.schedule is not None and base.patched(phase.train).schedule != base.schedule:
            message = (
                f"phase '{key}' has another schedule than its hop, but a schedule over the hop is that of all phases"
            )
            hint = "remove it here, and set it in train or student.train"
            yield key, PathProblem(message, (*below, "schedule"), hint)
        if phase.train.warmup_epochs:
            message = f"phase '{key}' has a warm-up, but a schedule over the hop has one, at the start of the hop"
            yield key, PathProblem(message, (*below, FIELD), "remove it here, and set it in train or student.train")
    if base.warmup_epochs >= total:
        message = f"the hop of {name} is all warm-up: {FIELD} is {base.warmup_epochs:g}, and it has {_epochs(total)}"
        hint = f"set it below {total}, or raise the epochs"
        yield "", PathProblem(message, _place(path, network.train), hint)


def _control(spec: Spec) -> Iterator[tuple[str, PathProblem]]:
    """Check the control, which trains the student in one phase for as long as the hop."""
    total, own = _hop_epochs(spec, spec.student), spec.control_train
    warmup = spec.train.patched(spec.student.train, own).warmup_epochs
    if spec.control and warmup >= total:
        message = f"the training of the control is all warm-up: {FIELD} is {warmup:g}, and it has {_epochs(total)}"
        hint = f"set it below {total}, or raise student.epochs"
        place = ("control_train", FIELD) if own.warmup_epochs is not None else _place(("student",), spec.student.train)
        yield "control", PathProblem(message, place, hint)


def _refinement(spec: Spec, listed: Sequence[tuple[Path_, Student]]) -> Iterator[tuple[str, PathProblem]]:
    """Check the networks that refinement trains out of fold, each in one phase: the student, and the network above each
    round's hop. Without `refine.epochs`, a teacher is trained for its own epochs, which `_teacher` checks, and an
    assistant or student for as long as its hop."""
    rule = spec.refine
    if rule is None:
        return
    networks: list[tuple[Path_, str, Teacher | Student, int | None]] = []
    if rule.by != "student":
        above = listed[: rule.rounds - 1] if rule.between_hops else ()
        networks += [(("teacher",), "the teacher", spec.teacher, None)]
        networks += [(path, f"assistant {i + 1}", n, _hop_epochs(spec, n)) for i, (path, n) in enumerate(above)]
    if rule.by != "teacher":
        networks += [(("student",), "the student", spec.student, _hop_epochs(spec, spec.student))]
    for path, name, network, hop in networks:
        patch = rule.train or TrainPatch()
        own = patch.warmup_epochs is not None
        total = rule.epochs or hop or (network.epochs if own else None)
        warmup = spec.train.patched(network.train, patch).warmup_epochs
        if total is not None and warmup >= total:
            message = f"the out-of-fold training of {name} is all warm-up: {FIELD} is {warmup:g}, "
            message += f"and it has {_epochs(total)}"
            hint = f"set it below {total}, or {'raise' if rule.epochs else 'set'} refine.epochs"
            place = ("refine", "train", FIELD) if own else _place(path, network.train)
            yield f"refine {name}", PathProblem(message, place, hint)


def _hop_epochs(spec: Spec, network: Student) -> int:
    """Return the epochs of all phases of a hop."""
    epochs = phase_epochs(spec.distill.phases, network.epochs or spec.student.epochs, len(student_cut(network)))
    return sum(map(sum, epochs.values()))


def _place(path: Path_, patch: TrainPatch) -> Path_:
    """Return the path of the warm-up that a network without phases has: its own, else that of `train`."""
    return (*path, "train", FIELD) if patch.warmup_epochs is not None else ("train", FIELD)


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count != 1 else "")
