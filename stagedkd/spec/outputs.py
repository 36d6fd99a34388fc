"""Rules of teachers whose outputs come from a file: what they cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import EMBEDDED, FEATURES, Spec, Teacher
from stagedkd.spec.yaml import Path_


def outputs_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check what a method asks of teachers that are outputs alone."""
    teachers: list[tuple[Path_, Teacher]] = [(("teacher",), spec.teacher)]
    teachers += [(("co_teachers", i), teacher) for i, teacher in enumerate(spec.co_teachers)]
    for path, teacher in teachers:
        if not teacher.only_teaches:
            continue
        for field in ("weights", "substages", "input"):
            if getattr(teacher, field) is not None:
                message = f"outputs from a file have no {field}"
                yield PathProblem(message, (*path, field), f"remove {field}")
        for name, phase in spec.distill.phases.items():
            if phase.losses.sdd:
                message = "'sdd' compares the logits of regions, and outputs from a file have none"
                where = ("distill", "phases", name, "losses", "sdd")
                yield PathProblem(message, where, "use kd")
    if not spec.teacher.only_teaches:
        return
    for name, phase in spec.distill.phases.items():
        for loss in sorted(phase.losses.comparing(FEATURES | EMBEDDED)):
            message = f"'{loss}' compares feature maps, and the teacher's outputs have no feature maps"
            where = ("distill", "phases", name, "losses", loss)
            yield PathProblem(message, where, "use losses on logits, for example kd")
    if spec.distill.warm_start:
        message = "a student cannot start from the weights of a teacher that is outputs from a file"
        yield PathProblem(message, ("distill", "warm_start"), "remove warm_start")
    if spec.refine is not None and spec.refine.by != "student" and spec.refine.epochs:
        message = "refine trains the teacher out of fold, but outputs from a file cannot be trained"
        yield PathProblem(message, ("refine",), "set refine.by: student")
