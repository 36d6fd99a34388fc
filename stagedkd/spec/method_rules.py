"""Rules of the method: what phases compare and name in every hop, which networks guide, and the batches losses need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stagedkd.spec.cuts import student_cut
from stagedkd.spec.pairing import Matching
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.response_rules import response_problems
from stagedkd.spec.schema import EMBEDDED, FEATURES, RESPONSES, Phase, Spec, Student, Teacher
from stagedkd.spec.yaml import Path_


def phase_problems(spec: Spec, listed: Sequence[Student]) -> Iterator[PathProblem]:
    """Check the phases against the assistants `listed`: every assistant must have the substages that a phase names,
    every loss must get enough clips, and settings must agree with each other."""
    distill = spec.distill
    for name, phase in distill.phases.items():
        path = ("distill", "phases", name)
        for i, assistant in enumerate(listed):
            count = len(student_cut(assistant))
            numbers = phase.substages if isinstance(phase.substages, tuple) else ()
            if numbers and max(numbers) > count:
                message = f"phase '{name}' names substage {max(numbers)}, but assistant {i + 1} has {count}"
                yield PathProblem(message, (*path, "substages"), "declare its substages in the cascade")
        yield from _batch_problems(spec, path, phase)
        yield from response_problems(spec, listed, path, phase)
        if phase.ramp is not None and distill.normalize:
            yield PathProblem("normalize would undo the ramp", (*path, "ramp"), "remove one of the two")
    memories = {
        loss.model_dump_json(exclude={"weight", "schedule", "to", "warmup_epochs", "warmup_share"}): name
        for name, phase in distill.phases.items()
        if (loss := phase.losses.crd)
    }
    if len(memories) > 1:
        path = ("distill", "phases", list(memories.values())[-1], "losses", "crd")
        message = "crd has one memory for all phases, so its settings must be the same in each"
        yield PathProblem(message, path, "use the same settings in every phase")


def embedding_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check that phases which compare embeddings train what these come from: the last substage, or the head behind."""
    parts = len(student_cut(spec.student))
    for name, phase in spec.distill.phases.items():
        if not (embedded := phase.losses.comparing(EMBEDDED)):
            continue
        path = ("distill", "phases", name, "losses", min(embedded))
        if phase.substages == "one_by_one":
            message = (
                f"'{min(embedded)}' compares embeddings, but a phase with substages: one_by_one never reaches them"
            )
            yield PathProblem(message, path, "move it to a phase over all substages")
        elif (
            isinstance(phase.substages, tuple)
            and parts not in phase.substages
            and not phase.losses.comparing(RESPONSES)
        ):
            message = f"'{min(embedded)}' compares embeddings, but phase '{name}' ends before the last substage"
            yield PathProblem(message, path, f"add {parts} to substages")


def graft_problems(spec: Spec, teachers: Sequence[Teacher | Student]) -> Iterator[PathProblem]:
    """Check that the teachers of all hops can run their later blocks from a student's features."""
    for name, phase in spec.distill.phases.items():
        for teacher in teachers if phase.losses.graft else ():
            if teacher.runs_from_maps is False:
                message = f"graft runs the teacher's later blocks from a feature map, which {teacher.arch} cannot"
                path = ("distill", "phases", name, "losses", "graft")
                yield PathProblem(message, path, "use another teacher, or a loss such as kd or hint")


def _batch_problems(spec: Spec, path: Path_, phase: Phase) -> Iterator[PathProblem]:
    batch = spec.train.patched(spec.student.train, phase.train).batch
    for name, loss in phase.losses.named().items():
        if batch < loss.least_batch:
            message = f"'{name}' compares clips with each other: it needs batches of {loss.least_batch} or more"
            yield PathProblem(message, (*path, "losses", name), "raise train.batch")
    if batch < 2 and spec.distill.teacher.shuffle:
        path = ("distill", "teacher", "shuffle")
        yield PathProblem("shuffle needs batches of 2 or more", path, "raise train.batch")


def pair_problems(spec: Spec, matched: Matching, parts: int) -> Iterator[PathProblem]:
    """Check that every phase with feature losses has pairs to compare, for a student of `parts` substages."""
    for name, phase in spec.distill.phases.items():
        losses = phase.losses.comparing(FEATURES)
        if not losses:
            continue
        turns = [(k,) for k in range(parts)] if phase.substages == "one_by_one" else [tuple(range(parts))]
        if isinstance(phase.substages, tuple):
            turns = [tuple(k - 1 for k in phase.substages)]
        for turn in turns:
            count = len({k for k, _ in matched.of(turn)})
            if not count or (count < 2 and "stage_cka" in losses):
                numbers = ", ".join(str(k + 1) for k in turn)
                required = "two pairs" if count else "a pair"
                yield PathProblem(
                    f"phase '{name}' needs {required} of substages to compare for substage {numbers}",
                    ("distill", "phases", name),
                    "add pairs to distill.pairing, or train other substages",
                )


def guide_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check the guides: several guides, and dropping one, make sense only if logits are compared with theirs."""
    distill, several = spec.distill, bool(spec.co_teachers) or spec.distill.guides == "dense"
    if not several and distill.drop:
        yield PathProblem("drop needs several guides", ("distill", "drop"), "set guides: dense, or remove drop")
    if several and not any(phase.losses.needs_guide_logits for phase in distill.phases.values()):
        path = ("co_teachers",) if spec.co_teachers else ("distill", "guides")
        yield PathProblem("several guides need a loss on logits", path, "add one, for example kd")
    if distill.teacher.stop is not None and not spec.teacher.epochs:
        path = ("distill", "teacher", "stop")
        yield PathProblem("a teacher of 0 epochs cannot be stopped early", path, "remove stop")


def head_notes(spec: Spec) -> Iterator[PathProblem]:
    """Find phases that train no head after one that did: they move features away from what the head was fitted to. A
    new phase of a child goes last, after the phases of its parents."""
    phases = spec.distill.phases
    heads = [name for name, phase in phases.items() if phase.losses.comparing(RESPONSES)]
    names = list(phases)
    for number, name in enumerate(names):
        before = [head for head in heads if names.index(head) < number]
        if name in heads or not before:
            continue
        later = next((head for head in heads if names.index(head) > number), None)
        until = f"until '{later}' trains it again" if later else "and no later phase trains it"
        which = f"the last phase '{name}'" if number == len(names) - 1 else f"phase '{name}'"
        message = f"{which} trains no head: it moves features after '{before[-1]}' has trained the head, {until}; "
        message += f"give '{name}' a loss on logits or labels, or list all phases in another order, below $replace"
        yield PathProblem(message, ("distill", "phases", name), "")
