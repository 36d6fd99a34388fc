"""Before anything is trained: build every network on the meta device, and find wrong cuts, shapes and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagedkd.errors import Problem, SpecError, StagedkdError
from stagedkd.models.shapes import NetworkShape, measure
from stagedkd.plan.graph import Graph
from stagedkd.plan.key import digest
from stagedkd.plan.lock import data_id
from stagedkd.plan.work import Cut, DistillWork
from stagedkd.spec.cuts import cut_problems
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Arch, Simulated
from stagedkd.stages.networks import build_or_refuse


@dataclass(frozen=True)
class Pair:
    """A student substage against a teacher's (`number`, such as 1-2): feature shapes (C, T, H, W), and the grid both
    are pooled to."""

    hop: str
    number: str
    student: tuple[int, ...]
    teacher: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(min(a, b) for a, b in zip(self.student[1:], self.teacher[1:], strict=True))


@dataclass(frozen=True)
class Preflight:
    """`networks`: shape by stage name; `pairs` of all hops."""

    networks: Mapping[str, NetworkShape]
    pairs: tuple[Pair, ...]


def preflight(plan: Graph, root: Path, seen: dict[str, NetworkShape] | None = None) -> Preflight:
    """Measure every network of a plan and every pair of every hop. `seen` keeps shapes from one call to the next.

    Raises:
        SpecError: a network cannot be built or cannot take the clips, or a cut names blocks that are not there.
    """
    classes = class_count(plan)
    networks: dict[str, NetworkShape] = {}
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for stage in plan.stages:
        made, clip = stage.work.network, stage.work.view
        if made is None or clip is None:
            continue
        view = clip.seen(made.input)
        try:
            networks[stage.name] = _measure(made.arch, view, classes, root, seen)
        except (StagedkdError, ValueError, RuntimeError) as error:
            fault = str(error).splitlines()[0]
            problems.append(Problem(f"{stage.name}: {made.arch.arch} cannot run here: {fault}"))
    if problems:
        raise SpecError(problems)
    for stage in plan.stages:
        if isinstance(stage.work, DistillWork):
            mine, theirs = networks[stage.name], networks[stage.needs["teacher"]]
            problems += _wrong_cut(stage.name, stage.work.cut, tuple(mine.maps))
            problems += _wrong_cut(stage.needs["teacher"], stage.work.teacher_cut, tuple(theirs.maps))
            if not problems and stage.work.teacher_cut:
                pairs += _pairs(stage.name, stage.work, mine, theirs)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return Preflight(networks, tuple(pairs))


def class_count(plan: Graph) -> int:
    """Classes of the plan's data: of the simulator, or from the lock; 2 where neither knows yet."""
    data = next(stage.work.data_set for stage in plan.stages if stage.work.data_set is not None)
    if isinstance(data, Simulated):
        return len(class_names(data))
    entry = plan.lock.data.get(str(data_id(data)))
    return len(entry.classes) if entry else 2


def _measure(
    arch: Arch, view: tuple[int, int], classes: int, root: Path, seen: dict[str, NetworkShape] | None
) -> NetworkShape:
    known = {} if seen is None else seen
    name = digest([arch, *view, classes])
    if name not in known:
        known[name] = measure(lambda: build_or_refuse(arch, classes, root), *view)
    return known[name]


def _wrong_cut(name: str, cut: Cut, blocks: Sequence[str]) -> list[Problem]:
    return [
        Problem(f"{name}: {fault}", None, hint) for fault, _, hint in (cut_problems(cut, tuple(blocks)) if cut else ())
    ]


def _pairs(name: str, work: DistillWork, mine: NetworkShape, theirs: NetworkShape) -> list[Pair]:
    pairs = sorted({pair for phase in work.phases for pair in phase.pairs})
    return [
        Pair(name, f"{k + 1}-{m + 1}", mine.maps[work.cut[k][-1]], theirs.maps[work.teacher_cut[m][-1]])
        for k, m in pairs
    ]
