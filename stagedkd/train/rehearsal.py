"""A rehearsal: a few steps of each phase and a few batches of each evaluation, to see what the whole will take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

STEPS = 2  # at least so many of a phase, or batches of an evaluation
SECONDS = 1.0  # and on until they have taken so long, since short ones are measured badly
PASSES = 2  # over the same clips: outputs of the teacher that are kept are made in the first, and read in the second


@dataclass
class PhaseTimes:
    """The seconds of the steps of a phase, by pass. A training takes `epochs` of `steps` steps each, and all its
    validations `validating` seconds. The first step of a pass holds what an epoch takes beside its steps, such as the
    measuring of correlations."""

    steps: int
    epochs: int
    passes: list[list[float]] = field(default_factory=list[list[float]])
    validating: float = 0.0

    @property
    def later(self) -> float:
        """The seconds of a step in the epochs after the first one."""
        return _typical(self.passes[-1])

    @property
    def seconds(self) -> float:
        """The seconds of the whole phase."""
        beside = max(0.0, self.passes[-1][0] - self.later)
        first = self.steps * (_typical(self.passes[0]) - self.later)
        return first + self.epochs * (self.steps * self.later + beside) + self.validating


@dataclass
class Rehearsal:
    """What is measured of one training or evaluation, of which the stage has `times` alike.

    `batches` are the seconds of the predicted batches, of `all_batches`; `checkpoint` is the size of one in bytes;
    `ended` is when the last step or batch ended.
    """

    times: int = 1
    phases: dict[str, PhaseTimes] = field(default_factory=dict[str, PhaseTimes])
    batches: list[float] = field(default_factory=list[float])
    all_batches: int = 0
    checkpoint: int = 0
    ended: float = field(default_factory=time.monotonic)

    def begin_pass(self, phase: str, steps: int, epochs: int) -> None:
        """Begin a pass of a phase of so many epochs, with so many steps each."""
        self.phases.setdefault(phase, PhaseTimes(steps, epochs)).passes.append([])
        self.ended = time.monotonic()

    def step(self, phase: str) -> None:
        """Note that a step has ended."""
        self.phases[phase].passes[-1].append(self._lap())

    def enough(self, phase: str) -> bool:
        """Whether this pass of the phase has taken its steps. Further passes take as many as the first."""
        first, *further = self.phases[phase].passes
        return len(further[-1]) >= len(first) if further else _enough(first)

    def begin_batches(self, count: int) -> None:
        """Begin an evaluation of so many batches."""
        self.all_batches, self.ended = count, time.monotonic()

    def batch(self) -> bool:
        """Note that a batch was predicted. Returns whether these are enough."""
        self.batches.append(self._lap())
        return _enough(self.batches)

    def facts(self) -> dict[str, Any]:
        """What follows for the stage: `spent`, the seconds of the steps and batches of the rehearsal; `seconds`, those
        of all steps and batches of the stage; `steps`, those of one step by phase; `checkpoint`."""
        phases = self.phases.values()
        spent = sum(sum(row) for phase in phases for row in phase.passes) + sum(self.batches)
        predicting = _typical(self.batches) * self.all_batches if self.batches else 0.0
        seconds = self.times * (sum(phase.seconds for phase in phases) + predicting)
        steps = {name: phase.later for name, phase in self.phases.items()}
        return {"spent": spent, "seconds": seconds, "steps": steps, "checkpoint": self.checkpoint}

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self.ended = now - self.ended, now
        return seconds


def _enough(seconds: list[float]) -> bool:
    return len(seconds) >= STEPS and sum(seconds) >= SECONDS


def _typical(seconds: list[float]) -> float:
    """The median without the first, which warms up."""
    return statistics.median(seconds[1:] or seconds)
