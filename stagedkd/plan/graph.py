"""Stages and plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagedkd.plan.lock import Lock
from stagedkd.plan.work import Work
from stagedkd.spec.schema import Spec


@dataclass(frozen=True)
class Stage:
    """One unit of work. `needs` maps a role (data, labels, teacher, network) to the name of the stage that gives it.
    `key` is None while something upstream is not in the lock."""

    name: str
    work: Work
    needs: Mapping[str, str] = field(default_factory=dict[str, str])
    key: str | None = None

    @property
    def folder(self) -> str:
        """Folder of the stage's artifact in the store."""
        return f"{self.work.kind}-{self.key[:12]}" if self.key else "unlocked"


@dataclass(frozen=True)
class Plan:
    """A compiled spec: stages in topological order."""

    name: str
    spec: Spec
    lock: Lock
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def inputs(self, stage: Stage) -> dict[str, Stage]:
        """The stages that a stage needs, by role."""
        return {role: self.stage(name) for role, name in stage.needs.items()}

    def closure(self, stage: Stage) -> tuple[Stage, ...]:
        """The stage and all above it, in topological order."""
        wanted = {stage.name}
        for other in reversed(self.stages):
            if other.name in wanted:
                wanted |= set(other.needs.values())
        return tuple(other for other in self.stages if other.name in wanted)
