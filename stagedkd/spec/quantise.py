"""The last phase of a student that is quantised: which phase it follows, its epochs and settings, and its rules."""

from __future__ import annotations

from collections.abc import Iterator

from stagedkd.spec.cuts import student_cut
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schedule import PhaseProblem, phase_epochs
from stagedkd.spec.schema import RESPONSES, NetworkFields, Phase, Quantise, Spec, Train

PHASE = "quantise"
SHARE, SLOWER = 0.1, 0.1  # of the epochs of the hop, and of the learning rate of the phase before


def quantise_epochs(quantise: Quantise, hop: int) -> int:
    """The epochs of the phase, behind a hop of `hop` epochs."""
    return quantise.epochs or max(1, round(SHARE * hop))


def quantise_train(quantise: Quantise, before: Train) -> Train:
    """The settings of the phase, from those of the phase before it."""
    own = before.over_phase().model_copy(update={"lr": SLOWER * before.lr, "warmup_epochs": 0.0})
    return own.patched(quantise.train).model_copy(update={"precision": "fp32"})


def quantise_problems(spec: Spec) -> Iterator[PathProblem]:
    """Check a student that is quantised, and that no assistant is."""
    for i, item in enumerate(spec.cascade if spec.cascade != "auto" else ()):
        if isinstance(item, NetworkFields) and item.quantise is not None:
            message = "only the student is quantised, and this is an assistant"
            yield PathProblem(message, ("cascade", i, "quantise"), "remove it here")
    quantise = spec.student.quantise
    if quantise is None:
        return
    name, last = list(spec.distill.phases.items())[-1]
    if PHASE in spec.distill.phases:
        message = f"'{PHASE}' is the name of the phase that student.quantise adds"
        yield PathProblem(message, ("distill", "phases", PHASE), "give your phase another name")
    if not _trains_all(last, len(student_cut(spec.student))):
        message = f"student.quantise goes on with the losses of the last phase, and '{name}' does not train all"
        hint = "let the last phase have substages: all and a loss on logits or labels, such as ce"
        yield PathProblem(message, ("student", "quantise"), hint)
    if quantise.train.precision not in (None, "fp32"):
        path = ("student", "quantise", "train", "precision")
        yield PathProblem("the phase of int8 computes in fp32", path, "remove it here")
    yield from _warmup(spec, quantise)


def _trains_all(phase: Phase, parts: int) -> bool:
    listed = isinstance(phase.substages, tuple) and set(phase.substages) == set(range(1, parts + 1))
    return bool(phase.losses.comparing(RESPONSES)) and (phase.substages == "all" or listed)


def _warmup(spec: Spec, quantise: Quantise) -> Iterator[PathProblem]:
    """Check that the phase is longer than a warm-up of its own."""
    try:
        parts = len(student_cut(spec.student))
        hop = sum(map(sum, phase_epochs(spec.distill.phases, spec.student.epochs, parts).values()))
    except PhaseProblem:
        return  # said elsewhere
    epochs, warmup = quantise_epochs(quantise, hop), quantise.train.warmup_epochs or 0.0
    if warmup >= epochs:
        message = f"the phase of int8 is all warm-up: warmup_epochs is {warmup:g}, and it has {epochs} epochs"
        path = ("student", "quantise", "train", "warmup_epochs")
        yield PathProblem(message, path, f"set it below {epochs}, or raise student.quantise.epochs")
