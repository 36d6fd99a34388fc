"""How a training uses labels: which clips its batches hold, and how the classes weigh. Rules with their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from stagedkd.spec.families import class_names
from stagedkd.spec.fields import nearest
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import Losses, NetworkFields, Sees, Simulated, Spec, Student, Teacher, Train, TrainPatch
from stagedkd.spec.schema.training import ClassWeights
from stagedkd.spec.yaml import Path_

FIELDS = ("labelled", "balance", "class_weights")


def uses_labels(losses: Losses) -> bool:
    """Return whether a loss uses the given labels."""
    return bool(losses.given_labels) or any(loss.takes_labels for loss in losses.named().values())


def labels_alone(losses: Losses) -> bool:
    """Return whether all losses are on given labels, such as `ce`, so that clips without a label would do nothing."""
    return losses.named().keys() == losses.given_labels


def relevant(train: Train, losses: Losses) -> Train:
    """Return the settings without those about labels that these losses do not use. So they do not enter keys."""
    unused: dict[str, None] = {}
    if labels_alone(losses) or not uses_labels(losses):
        unused["labelled"] = None
    if not uses_labels(losses):
        unused["balance"] = None
    if losses.ce is None:
        unused["class_weights"] = None
    return train.model_copy(update=unused)


def label_source(spec: Spec, teacher: Teacher) -> Literal["same", "all", "refined"]:
    """Return the labels on which a teacher is trained here: those of the method, or else its own."""
    return spec.distill.teacher.labels or teacher.trains_on


def refined_teachers(spec: Spec) -> list[tuple[Path_, Teacher]]:
    """Return the teachers that are trained on refined labels, each with the path of the field that says so."""
    teachers: list[tuple[Path_, Teacher]] = [(("teacher", "labels"), spec.teacher)]
    teachers += [(("co_teachers", i, "labels"), teacher) for i, teacher in enumerate(spec.co_teachers)]
    for_all: Path_ = ("distill", "teacher", "labels")
    named = [(for_all if spec.distill.teacher.labels else path, teacher) for path, teacher in teachers]
    return [(path, teacher) for path, teacher in named if label_source(spec, teacher) == "refined"]


def refined_teacher_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check the teachers that are trained on refined labels."""
    for path, teacher in refined_teachers(spec):
        if spec.refine is None:
            hint = "add refine: {kind: noise_model}, or set labels: same"
            yield PathProblem("a teacher on refined labels needs refine", path, hint)
        elif not teacher.epochs:
            message = "a teacher of 0 epochs is not trained on any labels, so not on refined ones"
            yield PathProblem(message, path, "raise teacher.epochs, or set labels: same")
        elif spec.refine.targets == "soft" and spec.train.patched(teacher.train).class_weights is not None:
            message = "class_weights weigh ce alone, and a teacher on soft refined labels has none"
            yield PathProblem(message, path, "set refine.targets: hard, or remove class_weights")


def sees_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check that there are as many simulated training clips as a network is to see, and that a part of the student's is
    there for a teacher that sees the same or other clips."""
    yield from _teacher_sees_problems(spec)
    items = enumerate(spec.cascade if spec.cascade != "auto" else ())
    students: list[tuple[Path_, Student]] = [(("cascade", i), n) for i, n in items if isinstance(n, NetworkFields)]
    for path, student in (*students, (("student",), spec.student)):
        if student.sees is None or not isinstance(spec.data, Simulated):
            continue
        count, total = student.sees.clips_of(spec.data.train), spec.data.train
        if count > total:
            message = f"the network sees {count} clips, but there are {total} training clips"
            yield PathProblem(message, (*path, "sees"), f"set sees to {total} or less, or raise data.train")


def _teacher_sees_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check the teachers that see the same or other clips than the student."""
    teachers: list[tuple[Path_, Teacher]] = [(("teacher",), spec.teacher)]
    teachers += [(("co_teachers", i), teacher) for i, teacher in enumerate(spec.co_teachers)]
    part = spec.student.sees
    for path, teacher in teachers:
        at = (*path, "sees")
        if teacher.sees is None:
            continue
        if not teacher.epochs:
            message = "a teacher of 0 epochs is not trained, so it sees no clips"
            yield PathProblem(message, at, "raise its epochs, or remove sees")
        elif part is None:
            message = f"sees: {teacher.sees} is about the student's part of the clips, but the student sees all"
            yield PathProblem(message, at, "set student.sees, for example to 80, or remove it here")
        elif teacher.sees == "others" and _clips_left(spec, part) == 0:
            message = "the student sees all training clips, so none are left for the teacher"
            yield PathProblem(message, at, "lower student.sees, or raise data.train")


def _clips_left(spec: Spec, part: Sees) -> int | None:
    """The simulated training clips that are not in a part; None for videos, which nothing has counted yet."""
    return spec.data.train - part.clips_of(spec.data.train) if isinstance(spec.data, Simulated) else None


def out_of_fold_warnings(spec: Spec) -> Iterator[PathProblem]:
    """Find networks that refinement trains out of fold, but that start from weights that may know the clips."""
    rule = spec.refine
    if rule is None:
        return
    networks: list[tuple[Path_, Teacher | Student]] = []
    if rule.by != "student":
        networks.append((("teacher",), spec.teacher))
        items = spec.cascade if rule.between_hops and spec.cascade != "auto" else ()
        networks += [(("cascade", i), item) for i, item in enumerate(items) if isinstance(item, NetworkFields)]
    if rule.by != "teacher":
        networks.append((("student",), spec.student))
    for path, network in networks:
        if source := network.weights or network.pretrained_from:
            name = "assistant" if path[0] == "cascade" else path[0]
            message = f"refine trains the {name} out of fold, but it starts from {source}: if these weights were made"
            message += " with training clips, its predictions of them are not out of fold"
            hint = "start from weights that never saw these clips, or refine by a network without weights"
            yield PathProblem(message, (*path, "weights") if network.weights else path, hint)


def label_use_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check `labelled`, `balance` and `class_weights` in every section where they are set."""
    unlabelled = spec.labels.clean + spec.labels.noisy == 0
    for path, patch in _sections(spec):
        for name in FIELDS:
            if unlabelled and getattr(patch, name) is not None and not _true_labels(spec, path):
                message = f"'{name}' has no labels: labels.clean and labels.noisy are 0"
                yield PathProblem(message, (*path, name), f"raise labels.clean, or remove {name}")
        if patch.class_weights is not None and isinstance(spec.data, Simulated):
            at, message, hint = class_weights_problem(patch.class_weights, class_names(spec.data))
            if message:
                yield PathProblem(message, (*path, "class_weights", *at), hint)
    for name, phase in spec.distill.phases.items():
        path = ("distill", "phases", name, "train")
        if not uses_labels(phase.losses):
            for field in ("labelled", "balance"):
                if getattr(phase.train, field) is not None:
                    message = f"'{field}' changes nothing: no loss of the phase '{name}' uses the given labels"
                    yield PathProblem(message, (*path, field), f"add ce, or remove {field}")
        if phase.losses.ce is None and phase.train.class_weights is not None:
            message = f"'class_weights' changes nothing: the phase '{name}' has no ce"
            yield PathProblem(message, (*path, "class_weights"), "add ce, or remove class_weights")
        if labels_alone(phase.losses) and phase.train.labelled is not None:
            alone = " and ".join(sorted(phase.losses.given_labels))
            message = (
                f"'labelled' changes nothing: the phase '{name}' has {alone} alone, so it draws labelled clips alone"
            )
            yield PathProblem(message, (*path, "labelled"), "remove labelled")
        train = relevant(spec.train.patched(spec.student.train, phase.train), phase.losses)
        if train.balance and not train.labelled and not labels_alone(phase.losses):
            message = f"'balance' needs 'labelled': the phase '{name}' draws labelled and other clips together"
            hint = "set train.labelled to the share of labelled clips, 1 for labelled clips alone"
            yield PathProblem(message, ("distill", "phases", name), hint)


def _sections(spec: Spec) -> Iterator[tuple[Path_, Train | TrainPatch]]:
    """Yield every section `train` with its path."""
    yield ("train",), spec.train
    yield ("teacher", "train"), spec.teacher.train
    for i, teacher in enumerate(spec.co_teachers):
        yield ("co_teachers", i, "train"), teacher.train
    for i, item in enumerate(spec.cascade if spec.cascade != "auto" else ()):
        if isinstance(item, NetworkFields):
            yield ("cascade", i, "train"), item.train
    yield ("student", "train"), spec.student.train
    yield ("control_train",), spec.control_train
    if spec.refine is not None and spec.refine.train is not None:
        yield ("refine", "train"), spec.refine.train
    for name, phase in spec.distill.phases.items():
        yield ("distill", "phases", name, "train"), phase.train


def _true_labels(spec: Spec, path: Path_) -> bool:
    """Return whether a section is, or reaches, a teacher that is trained on the true labels of all clips."""
    teachers = [spec.teacher, *spec.co_teachers]
    if path[0] in ("cascade", "student", "distill") or spec.distill.teacher.labels is not None:
        return False
    if path[0] == "co_teachers":
        teachers = [spec.co_teachers[int(path[1])]]
    elif path[0] == "teacher":
        teachers = [spec.teacher]
    return any(teacher.trains_on == "all" for teacher in teachers)


def class_weights_problem(weights: ClassWeights, classes: Sequence[str]) -> tuple[Path_, str, str]:
    """Return what is wrong with class weights for these classes: (path below the field, message, hint); the message is
    "" if nothing is, or `classes` is empty: not known yet."""
    if not classes or weights == "inverse":
        return (), "", ""
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in classes:
                return (name,), f"there is no class '{name}'", nearest(name, classes)
    elif len(weights) != len(classes):
        order = ", ".join(classes) if len(classes) <= 12 else f"{', '.join(classes[:12])}, ..."
        message = f"{len(weights)} class weights for {len(classes)} classes"
        return (), message, f"give one for each, in the order {order}; or a map from classes to numbers"
    return (), "", ""
