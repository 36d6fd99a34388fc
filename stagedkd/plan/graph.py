"""Stages, graphs of them, plans, and the plans of a whole experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from stagedkd.plan.key import NO_KEY, Key
from stagedkd.plan.lock import Lock
from stagedkd.plan.work import Work
from stagedkd.spec.schema import Clip, Spec

Role: TypeAlias = Literal[
    "data", "labels", "teacher", "co_teacher", "refine", "assistant", "student", "control", "evaluate"
]


@dataclass(frozen=True)
class Stage:
    """One unit of work. `needs` maps each input (data, labels, teacher, guide-1, refined, previous, network) to the
    name of the stage that gives it. `identity` tells the work from any other; it is the key unless something upstream
    is not in the lock yet. `role` is what the stage is in its experiment. It is no part of the key; it is None where a
    stage was read from a manifest, since one work may have another role in each experiment."""

    name: str
    work: Work
    needs: Mapping[str, str] = field(default_factory=dict[str, str])
    identity: Key = NO_KEY
    locked: bool = True
    role: Role | None = None

    @property
    def key(self) -> Key | None:
        """The content key; None while data or weights upstream are not in the lock."""
        return self.identity if self.locked else None

    @property
    def folder(self) -> str:
        """Folder of the stage's artifact in the store."""
        return self.identity.folder(self.work.kind) if self.locked else "unlocked"


@dataclass(frozen=True)
class Graph:
    """What can be executed: stages in topological order. `clip` says how videos are read where a stage does not: by
    which decoder, through which cache."""

    name: str
    lock: Lock
    stages: tuple[Stage, ...]
    clip: Clip

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def of_role(self, role: Role) -> tuple[Stage, ...]:
        """The stages of a role, in order."""
        return tuple(stage for stage in self.stages if stage.role == role)

    def inputs(self, stage: Stage) -> dict[str, Stage]:
        """The stages that a stage needs, by the name of the input."""
        return {name: self.stage(upstream) for name, upstream in stage.needs.items()}

    def closure(self, stage: Stage) -> tuple[Stage, ...]:
        """The stage and all above it, in topological order."""
        wanted = {stage.name}
        for other in reversed(self.stages):
            if other.name in wanted:
                wanted |= set(other.needs.values())
        return tuple(other for other in self.stages if other.name in wanted)


@dataclass(frozen=True)
class Plan(Graph):
    """A compiled spec."""

    spec: Spec
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plans:
    """The plans of an experiment by cell name, in order; one, named "", where there is no grid."""

    name: str
    axes: Mapping[str, tuple[str, ...]]
    cells: Mapping[str, Plan]
    labels: Mapping[str, Mapping[str, str]]

    @property
    def is_grid(self) -> bool:
        return bool(self.axes)

    @property
    def unique(self) -> Mapping[Key, Stage]:
        """Every stage once, by identity, in the order in which it is first met."""
        found: dict[Key, Stage] = {}
        for plan in self.cells.values():
            for stage in plan.stages:
                found.setdefault(stage.identity, stage)
        return found

    @property
    def twins(self) -> tuple[tuple[str, str], ...]:
        """Cells that are the same experiment under two names."""
        first: dict[tuple[str, ...], str] = {}
        found: list[tuple[str, str]] = []
        for name, plan in self.cells.items():
            same = first.setdefault(tuple(stage.identity for stage in plan.stages), name)
            if same != name:
                found.append((same, name))
        return tuple(found)
