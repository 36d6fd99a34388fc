"""Rules of teachers whose outputs come from a file: what they cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import EMBEDDED, FEATURES, LOGITS, OutputsArch, Spec, Teacher
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
        if isinstance(teacher, OutputsArch):
            yield from _embeddings_problems(spec, path, teacher)
    if not isinstance(spec.teacher, OutputsArch):
        return
    embeddings = spec.teacher.embeds
    for name, phase in spec.distill.phases.items():
        for loss in sorted(phase.losses.comparing(FEATURES if embeddings else FEATURES | EMBEDDED)):
            message = f"'{loss}' compares feature maps, and the teacher's outputs have no feature maps"
            where = ("distill", "phases", name, "losses", loss)
            hint = "set taps: embedding, or use a loss that has it, for example hint or sp"
            yield PathProblem(message, where, hint if embeddings else "use losses on logits, for example kd")
    if spec.distill.warm_start:
        message = "a student cannot start from the weights of a teacher that is outputs from a file"
        yield PathProblem(message, ("distill", "warm_start"), "remove warm_start")
    if spec.refine is not None and spec.refine.by != "student" and spec.refine.epochs:
        message = "refine trains the teacher out of fold, but outputs from a file cannot be trained"
        yield PathProblem(message, ("refine",), "set refine.by: student")


def _embeddings_problems(spec: Spec, path: Path_, teacher: OutputsArch) -> Iterator[PathProblem]:
    """Check that nothing needs the logits or the classes of a teacher that gives embeddings."""
    if not teacher.embeds:
        return
    if teacher.classes is not None:
        yield PathProblem("embeddings have no classes", (*path, "classes"), "remove classes")
    if path[0] == "co_teachers":
        message = "the logits of co_teachers are compared, and embeddings are none"
        yield PathProblem(message, (*path, "kind"), "make it the teacher, or give logits")
        return
    for name, phase in spec.distill.phases.items():
        for loss in sorted(phase.losses.comparing(LOGITS)):
            message = f"'{loss}' compares logits, and the teacher's outputs are embeddings"
            hint = "use losses with taps: embedding, for example hint or sp"
            yield PathProblem(message, ("distill", "phases", name, "losses", loss), hint)
        for loss, section in phase.losses.named().items():
            if isinstance(section.weighing, str):
                message = f"weigh: {section.weighing} needs the teacher's logits, and its outputs are embeddings"
                yield PathProblem(message, ("distill", "phases", name, "losses", loss, "weigh"), "remove weigh")
