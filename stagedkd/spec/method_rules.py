"""Rules of the method: what phases compare and name in every hop, who guides, and which batches losses want."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from stagedkd.spec.cuts import student_cut
from stagedkd.spec.pairing import Matching
from stagedkd.spec.schema import FEATURES, LOGITS, Phase, Spec, Student

Fault: TypeAlias = tuple[str, tuple["str | int", ...], str]


def phases_fit(spec: Spec, listed: Sequence[Student]) -> Iterator[Fault]:
    """Phases name substages that every assistant has, losses have the clips that they need, and settings agree."""
    distill = spec.distill
    for name, phase in distill.phases.items():
        at = ("distill", "phases", name)
        for i, assistant in enumerate(listed):
            count = len(student_cut(assistant))
            numbers = phase.substages if isinstance(phase.substages, tuple) else ()
            if numbers and max(numbers) > count:
                fault = f"assistant {i + 1} has {count} substages, and phase '{name}' names {max(numbers)}"
                yield fault, (*at, "substages"), "add its substages to the cascade"
        yield from _batches(spec, at, phase)
        if phase.ramp is not None and distill.normalize:
            yield "normalize would undo the ramp", (*at, "ramp"), "leave one of the two out"
    memories = {
        loss.model_dump_json(exclude={"weight", "schedule", "to", "warmup_epochs"}): name
        for name, phase in distill.phases.items()
        if (loss := phase.losses.crd)
    }
    if len(memories) > 1:
        at = ("distill", "phases", list(memories.values())[-1], "losses", "crd")
        yield "crd has one memory over all phases: its settings must be the same in each", at, "give them all one form"


def _batches(spec: Spec, at: tuple[str | int, ...], phase: Phase) -> Iterator[Fault]:
    batch = spec.train.patched(spec.student.train, phase.train).batch
    for name, loss in phase.losses.named().items():
        if batch < loss.least_batch:
            yield (
                f"'{name}' relates clips: it wants batches of {loss.least_batch} or more",
                (*at, "losses", name),
                "raise train.batch",
            )
    if batch < 2 and spec.distill.teacher.shuffle:
        yield "one clip cannot be shuffled", ("distill", "teacher", "shuffle"), "raise train.batch"


def compared(spec: Spec, matched: Matching, parts: int) -> Iterator[Fault]:
    """Every phase with feature losses has something to compare."""
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
                what = "two pairs" if count else "a pair"
                yield (
                    f"phase '{name}' has not {what} of substages to compare for substage {numbers}",
                    ("distill", "phases", name),
                    "add pairs to distill.pairing, or train other substages",
                )


def guided(spec: Spec) -> Iterator[Fault]:
    """Guides and their dropping mean something only where logits are compared with several networks'."""
    distill, several = spec.distill, bool(spec.co_teachers) or spec.distill.guides == "dense"
    if not several and distill.drop:
        yield "drop is for several guides", ("distill", "drop"), "set guides: dense, or leave it out"
    if several and not any(phase.losses.comparing(LOGITS) for phase in distill.phases.values()):
        at = ("co_teachers",) if spec.co_teachers else ("distill", "guides")
        yield "several guides need a loss on logits", at, "for example kd"
    if distill.teacher.stop is not None and not spec.teacher.epochs:
        yield "a teacher of 0 epochs cannot be stopped early", ("distill", "teacher", "stop"), "leave it out"
