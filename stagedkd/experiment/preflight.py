"""Build every network on the meta device before anything is trained, and find wrong cuts, shapes and weights."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from stagedkd import losses
from stagedkd.errors import DataError, Problem, SpecError, StagedkdError
from stagedkd.losses.cells import cells_problem
from stagedkd.models.shapes import NetworkShape, measure
from stagedkd.plan.graph import Graph, Plans, Stage
from stagedkd.plan.key import Key, digest
from stagedkd.plan.kind import Cut
from stagedkd.plan.lock import data_id
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.spec.cuts import cut_problems
from stagedkd.spec.schema import Arch, Data, OutputsArch, Simulated, Size
from stagedkd.spec.schema.losses.distribution import DistributionLoss
from stagedkd.stages.distill import shape_of
from stagedkd.stages.keeping import Keeping, plan_keeping
from stagedkd.stages.networks import build_or_refuse, fit_weights
from stagedkd.stages.outputs import read_outputs
from stagedkd.train.forms import pair_grids

assert losses.FUNCTIONS  # imported here, so that a loss without a function fails before anything is trained


@dataclass(frozen=True)
class Pair:
    """A student substage that is compared with a teacher substage in a hop. `number` is such as 1-2; `student` and
    `teacher` are the feature shapes (C, T, H, W)."""

    hop: str
    number: str
    student: tuple[int, ...]
    teacher: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid (T, H, W) to which both feature maps are pooled."""
        return tuple(min(a, b) for a, b in zip(self.student[1:], self.teacher[1:], strict=True))


@dataclass(frozen=True)
class Preflight:
    """The shapes of a plan. `networks`: shapes by stage name; `pairs`: those of all hops."""

    networks: Mapping[str, NetworkShape]
    pairs: tuple[Pair, ...]


def preflight(plan: Graph, root: Path, seen: dict[str, NetworkShape] | None = None) -> Preflight:
    """Measure every network of a plan and every pair of every hop. `seen` holds the shapes of earlier calls.

    Raises:
        SpecError: a network cannot be built or cannot take the clips, or a cut names blocks that do not exist.
    """
    classes = class_count(plan)
    networks: dict[str, NetworkShape] = {}
    pairs: list[Pair] = []
    problems: list[Problem] = []
    for stage in plan.stages:
        network, clip = stage.work.network, stage.work.view
        if network is None or clip is None or network.arch.only_teaches:
            continue
        view = clip.seen(network.input)
        try:
            networks[stage.name] = _measure(network.arch, view, classes, root, seen)
        except (StagedkdError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            problems.append(Problem(f"{stage.name}: {network.arch.arch} cannot be used: {reason}"))
    if problems:
        raise SpecError(problems)
    for stage in plan.stages:
        if isinstance(stage.work, DistillWork):
            student, teacher = networks[stage.name], networks.get(stage.needs["teacher"])
            problems += _cut_problems(stage.name, stage.work.cut, tuple(student.maps))
            if teacher is None:  # outputs from a file
                continue
            problems += _cut_problems(stage.needs["teacher"], stage.work.teacher_cut, tuple(teacher.maps))
            if not problems and stage.work.teacher_cut:
                pairs += _pairs(stage.name, stage.work, student, teacher)
                problems += _feature_problems(stage, stage.work, student, teacher)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return Preflight(networks, tuple(pairs))


def check_weights(plan: Graph, keys: Container[Key], runtime: Runtime, checked: set[str]) -> None:
    """Read the weights with which the stages of these keys start, and fit them to their networks and to the classes of
    the data. Nothing is read where the lock does not know the classes yet. `checked` holds what earlier calls read.

    The outputs of teachers from elsewhere are read, too.

    Raises:
        DataError: weights cannot be read or do not fit; a network that is not trained gets no head; or outputs do not
            fit the classes.
    """
    classes = _classes(plan)
    for stage in plan.stages if classes else ():
        work, made = stage.work, stage.work.network
        if isinstance(work, TeachWork) and isinstance(work.arch, OutputsArch) and stage.identity in keys:
            _check_outputs(stage.name, work.arch, classes, Path(runtime.root), checked)
            continue
        model = [(made.arch, None)] if made is not None and made.arch.pretrained_from and not work.weight_files else []
        for arch, weights in [*work.weight_files, *model] if stage.identity in keys else ():
            headless = isinstance(work, TeachWork) and work.headless
            name = digest([arch, weights, bool(work.trainings) or headless, classes])
            if name in checked:
                continue
            checked.add(name)
            with torch.device("meta"):
                network = build_or_refuse(arch, len(classes), Path(runtime.root))
            try:
                fit_weights(network, arch, classes, weights, runtime, trained=bool(work.trainings) or headless)
            except DataError as error:
                raise DataError(f"stage {stage.name}: {error.message}", hint=error.hint) from error


def _check_outputs(name: str, arch: OutputsArch, classes: Sequence[str], root: Path, checked: set[str]) -> None:
    """Read the outputs of a teacher from elsewhere. Raises DataError: they do not fit the classes."""
    mark = digest([arch, tuple(classes)])
    if mark in checked:
        return
    checked.add(mark)
    try:
        read_outputs(arch, root, classes)
    except DataError as error:
        raise DataError(f"stage {name}: {error.message}", hint=error.hint) from error


def hop_keepings(plans: Plans, runtime: Runtime) -> dict[Key, Keeping]:
    """Plan what each hop keeps on this machine, by identity, as far as its networks are known without running the
    user's code and the lock knows the number of clips."""
    seen: dict[str, NetworkShape] = {}
    keepings: dict[Key, Keeping] = {}
    for plan in plans.cells.values():
        data = next(stage.work.data_set for stage in plan.stages if stage.work.data_set is not None)
        for stage in plan.stages:
            work = stage.work
            if not isinstance(work, DistillWork) or stage.identity in keepings:
                continue
            clips = work.clips_seen(_clips(plan, data))
            networks = [(work.arch, work.input), (work.teacher, work.teacher_input)]
            networks += [(guide.arch, guide.input) for guide in work.guides]
            if any(arch.user_files is not None and arch.user_files.code for arch, _ in networks):
                continue
            classes, root = class_count(plan), Path(runtime.root)
            with suppress(StagedkdError, ValueError, RuntimeError):  # check names networks that cannot be built
                shapes = [_shape(arch, work.clip.seen(view), classes, root, seen) for arch, view in networks]
                keepings[stage.identity] = plan_keeping(work, data, clips, shapes, classes, runtime)
    return keepings


def _clips(plan: Graph, data: Data) -> int:
    """The number of training clips of a simulator; of a locked data set, that of all its clips; 0 if not known."""
    if isinstance(data, Simulated):
        return data.train
    entry = plan.lock.data.get(str(data_id(data)))
    return entry.clips if entry else 0


def class_count(plan: Graph) -> int:
    """The number of classes of the plan's data, from the simulator or the lock; 2 if neither knows it yet."""
    return len(_classes(plan)) or 2


def _classes(plan: Graph) -> tuple[str, ...]:
    """The classes of the plan's data, from the simulator or the lock; () if neither knows them yet."""
    data = next(stage.work.data_set for stage in plan.stages if stage.work.data_set is not None)
    return plan.lock.classes_of(data)


def _shape(arch: Arch, view: tuple[int, Size], classes: int, root: Path, seen: dict[str, NetworkShape]) -> NetworkShape:
    """As `_measure`; outputs from a file have no shape."""
    return shape_of(arch, classes, root, view) if arch.only_teaches else _measure(arch, view, classes, root, seen)


def _measure(
    arch: Arch, view: tuple[int, Size], classes: int, root: Path, seen: dict[str, NetworkShape] | None
) -> NetworkShape:
    """Measure a network, or take its shape from `seen`."""
    shapes = {} if seen is None else seen
    name = digest([arch, *view, classes])
    if name not in shapes:
        shapes[name] = measure(lambda: build_or_refuse(arch, classes, root), *view)
    return shapes[name]


def _cut_problems(name: str, cut: Cut, blocks: Sequence[str]) -> list[Problem]:
    """The problems of a network's cut into substages."""
    problems = cut_problems(cut, tuple(blocks)) if cut else ()
    return [Problem(f"{name}: {message}", None, hint) for message, _, hint in problems]


def _feature_problems(stage: Stage, work: DistillWork, student: NetworkShape, teacher: NetworkShape) -> list[Problem]:
    """What the losses of a hop cannot do with its networks: grafts that cannot run, and cells that do not fit."""
    problems: list[Problem] = []
    for phase in work.phases:
        where = f"{stage.name}, phase {phase.name}"
        if phase.losses.graft and not teacher.from_maps:
            message = f"{where}: graft cannot run the later blocks of {stage.needs['teacher']}, which has a class token"
            problems.append(Problem(message, None, "use another teacher, or a loss such as kd or hint"))
        grids = pair_grids(phase, work.pairing, (work.cut, work.teacher_cut), student, teacher)
        for name, loss in phase.losses.named().items():
            if not isinstance(loss, DistributionLoss) or loss.compared != "projected":
                continue
            for pair in grids[-1:] if loss.taps == "deepest" else grids:
                message, hint = cells_problem(pair.grid, getattr(loss, "samples", None), loss.cells)
                problems += [Problem(f"{where}: '{name}' on {pair.name}: {message}", None, hint)] if message else []
    return problems


def _pairs(name: str, work: DistillWork, student: NetworkShape, teacher: NetworkShape) -> list[Pair]:
    """The pairs of substages that the phases of a hop compare."""
    pairs = sorted({pair for phase in work.phases for pair in phase.pairs})
    return [
        Pair(name, f"{k + 1}-{m + 1}", student.maps[work.cut[k][-1]], teacher.maps[work.teacher_cut[m][-1]])
        for k, m in pairs
    ]
