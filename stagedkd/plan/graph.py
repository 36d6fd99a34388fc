"""Stages, graphs of stages, plans, and the plans of a whole experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from stagedkd.html import html_table
from stagedkd.plan.key import NO_KEY, Key
from stagedkd.plan.lock import Lock
from stagedkd.plan.work import Work
from stagedkd.spec.declared import Declared
from stagedkd.spec.schema import Clip, Spec
from stagedkd.spec.tuned import TunedSetting

Role: TypeAlias = Literal[
    "data", "labels", "teacher", "co_teacher", "refine", "assistant", "student", "control", "evaluate"
]


@dataclass(frozen=True)
class Stage:
    """One unit of work.

    Attributes:
        needs: maps each input (data, labels, teacher, guide-1, refined, previous, network) to the name of the stage
            that gives it.
        identity: tells this work from any other. It is the key, unless something upstream is not in the lock yet.
        locked: whether everything upstream is in the lock.
        role: what the stage is in its experiment. It is not part of the key. It is None for a stage that was read from
            a manifest, since the same work may have different roles in different experiments.
    """

    name: str
    work: Work
    needs: Mapping[str, str] = field(default_factory=dict[str, str])
    identity: Key = NO_KEY
    locked: bool = True
    role: Role | None = None

    @property
    def key(self) -> Key | None:
        """The content key; None as long as data or weights upstream are not in the lock."""
        return self.identity if self.locked else None

    @property
    def folder(self) -> str:
        """The name of the artifact's folder in the store."""
        return self.identity.folder(self.work.kind) if self.locked else "unlocked"


@dataclass(frozen=True)
class Graph:
    """Stages in topological order, ready to be executed. What their works do not name, since it changes no result:
    `clip` gives the decoder and the cache, `validate_every` the epochs between two validations of a training (0: never
    validated; None: as many as the length of an epoch suggests)."""

    name: str
    lock: Lock
    stages: tuple[Stage, ...]
    clip: Clip
    validate_every: int | None

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises KeyError if there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def of_role(self, role: Role) -> tuple[Stage, ...]:
        """The stages of a role, in order."""
        return tuple(stage for stage in self.stages if stage.role == role)

    def inputs(self, stage: Stage) -> dict[str, Stage]:
        """The stages that give a stage its inputs, by the names of the inputs."""
        return {name: self.stage(upstream) for name, upstream in stage.needs.items()}

    def _repr_html_(self) -> str:
        """The stages, for notebooks."""
        rows = [
            (s.name, s.work.kind, s.key.short if s.key else "unlocked", ", ".join(s.needs.values()))
            for s in self.stages
        ]
        return html_table(("stage", "kind", "key", "inputs"), rows)

    def closure(self, stage: Stage) -> tuple[Stage, ...]:
        """The stage and all stages upstream of it, in topological order."""
        names = {stage.name}
        for other in reversed(self.stages):
            if other.name in names:
                names |= set(other.needs.values())
        return tuple(other for other in self.stages if other.name in names)


@dataclass(frozen=True)
class Plan(Graph):
    """A compiled spec. `notes` are remarks for the user."""

    spec: Spec
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plans:
    """The plans of an experiment, by the names of its cells, in order. Without a grid there is one cell, named "".

    Attributes:
        axes: the names of each axis's values.
        labels: the value of each axis, by cell.
        tuned: what was tuned, by setting. declared: the comparison that the spec declares.
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    cells: Mapping[str, Plan]
    labels: Mapping[str, Mapping[str, str]]
    tuned: Mapping[str, TunedSetting] = field(default_factory=dict[str, TunedSetting])
    declared: Declared | None = None

    @property
    def is_grid(self) -> bool:
        """Whether the experiment has a grid."""
        return bool(self.axes)

    @property
    def unique(self) -> Mapping[Key, Stage]:
        """Every stage once, by identity, in the order of first occurrence."""
        stages: dict[Key, Stage] = {}
        for plan in self.cells.values():
            for stage in plan.stages:
                stages.setdefault(stage.identity, stage)
        return stages

    @property
    def twins(self) -> tuple[tuple[str, str], ...]:
        """Pairs of cells that are the same experiment under two names."""
        first: dict[tuple[str, ...], str] = {}
        pairs: list[tuple[str, str]] = []
        for name, plan in self.cells.items():
            same = first.setdefault(tuple(stage.identity for stage in plan.stages), name)
            if same != name:
                pairs.append((same, name))
        return tuple(pairs)
