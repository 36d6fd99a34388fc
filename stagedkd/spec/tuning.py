"""Load a spec for tuning: its section `tune`, and the cells that try the values of a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stagedkd.errors import Problem, SpecError
from stagedkd.spec.declared import Labels
from stagedkd.spec.grid import REPEATS, Axes, Axis, Point, cell_name, labels_of, setting_name
from stagedkd.spec.inherit import Source
from stagedkd.spec.leaks import leak_problem
from stagedkd.spec.load import Cell, Experiment, Loader
from stagedkd.spec.merge import Merger
from stagedkd.spec.read_grid import read_grid
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.data import Data
from stagedkd.spec.tune import Tune, applies, chosen_points, network_of, read_tune, result_seeds
from stagedkd.spec.tuned import ALL, Tuned, TunedSetting, read_tuned, tuned_problems
from stagedkd.spec.yaml import Node

Choices = Mapping[str, Mapping[str, str]]  # by setting, the label that was chosen of each field


@dataclass(frozen=True)
class Trial:
    """One cell of a tuning: the setting, the labels of the values that are tried, and the tuning seed."""

    setting: str
    labels: Mapping[str, str]
    seed: str


@dataclass(frozen=True)
class Tuning:
    """What is to be tuned: the section, the settings that are tuned with their merged trees, and the digest of what the
    tuned file is made from: the section `tune`, and the resolved spec of each setting without the values that are
    tried. `data` are the sections of their trials, by setting."""

    path: Path
    tune: Tune
    settings: Mapping[str, Point]
    trees: Mapping[str, Node]
    made_from: str
    data: Mapping[str, Data]

    def setting_for(self, labels: Mapping[str, str]) -> str | None:
        """Return the name of the setting whose choice a cell with these labels takes; None if there is none."""
        own = {axis: label for axis, label in labels.items() if axis not in REPEATS}
        return next((n for n, point in self.settings.items() if labels_of(point) == {**own, **self.tune.at}), None)

    def check_taken(self) -> None:
        """See that each setting that is not tuned can take any of the values that are tried for another one.

        Raises:
            SpecError: it cannot.
        """
        loader = Loader(self.path, (), tuned=False)
        axes, _ = read_grid(loader.source.grid)
        points: list[Point] = []
        for setting in axes.settings:
            owner = self.setting_for(labels_of(setting))
            for network in self.tune.networks if owner is not None and setting_name(setting) != owner else ():
                combinations = self.tune.combinations(network, self.trees[str(owner)])
                points += [(*setting, *values, *self.tune.seeded("")[0]) for values in combinations]
        loader.load_points(points, _on_validation)

    def trials(self, network: str, chosen: Choices) -> tuple[Experiment, dict[str, Trial]]:
        """Return the cells that try the values of a network, on validation, and the trial of each cell. Values of
        networks before it are those `chosen`; values of later ones are the spec's own.

        Raises:
            SpecError: a value makes the spec of a cell wrong.
        """
        points: list[Point] = []
        trials: dict[str, Trial] = {}
        for name, setting in self.settings.items():
            before = chosen_points(self.tune.fields, chosen.get(name, {}))
            for values in self.tune.combinations(network, self.trees[name]):
                for seed in self.tune.seeded(network):
                    points.append((*setting, *before, *values, *seed))
                    labels = {axis.name: label for axis, label, _ in values}
                    trials[cell_name(points[-1])] = Trial(name, labels, seed[0][1])
        return Loader(self.path, (), tuned=False).load_points(points, _on_validation), trials


def load_tuning(path: Path) -> Tuning:
    """Read what `stagedkd tune` needs of a spec, and check the cells that will take the choices.

    Raises:
        SpecError: the spec or its section `tune` is wrong, or it has none, or tuning chooses on clips that are tested.
        UsageError: the file does not exist.
    """
    tuning = _read(path)
    cells = Loader(path, (), tuned=False).load(()).cells
    owners = [(cell.spec, tuning.setting_for(cell.labels)) for cell in cells]
    found = [leak_problem(spec, tuning.data[name], tuning.tune.place) for spec, name in owners if name is not None]
    if leaks := [problem for problem in found if problem is not None and problem.severity == "error"]:
        raise SpecError(leaks[:1])  # one for all cells
    tuning.check_taken()
    return tuning


def _read(path: Path) -> Tuning:
    """Like `load_tuning`, without a look at the cells. Raises SpecError, UsageError."""
    loader = Loader(path, (), tuned=False)
    node = loader.source.tune
    if node is None:
        hint = "add tune: {values: {student.train.lr: [1e-2, 3e-2, 7e-2]}, seeds: [100, 101, 102]}"
        raise SpecError([Problem("the spec has no section tune", loader.source.tree.place, hint)])
    axes, problems = read_grid(loader.source.grid)
    seed = loader.source.tree.below("seed")
    if problems:
        raise SpecError(problems)  # what else is wrong may only follow from these
    tune, problems = read_tune(node, axes, seed.value if seed else 0)
    if tune is None:
        raise SpecError(problems)
    settings = {setting_name(p): p for p in axes.settings if tune.at.items() <= labels_of(p).items()}
    trees = {name: loader.tree_of(point, Merger()) for name, point in settings.items()}
    for field in tune.fields:
        _check_assistant(field, trees.values())
    trials = _first_trials(loader, tune, settings, trees)
    data = {name: spec.data for name, spec in zip(settings, trials, strict=True)}
    return Tuning(path, tune, settings, trees, _digest(axes, settings, trials, node, tune.at), data)


def _check_assistant(field: Axis, trees: Iterable[Node]) -> None:
    """Refuse a field `cascade.N...` if no setting has the assistant, or if it is a bare share."""
    having = [tree for tree in trees if applies(field, tree)]
    if not having:
        hint = "list it in cascade, or remove the field"
        raise SpecError([Problem(f"no setting that is tuned has the assistant of '{field.name}'", field.place, hint)])
    for tree in having if network_of(field.path).startswith("assistant") else ():
        item = tree.at(("cascade", int(field.path[1]) - 1))
        if item is not None and not isinstance(item.value, dict):
            message = f"'{field.name}' cannot be tuned: the assistant is a bare share"
            raise SpecError([Problem(message, item.place, "write it as a map: {share: ..., train: {...}}")])


def _first_trials(loader: Loader, tune: Tune, settings: Mapping[str, Point], trees: Mapping[str, Node]) -> list[Spec]:
    """Return the resolved spec of a trial of each setting: the first values of all networks, and the first seed."""
    points: list[Point] = []
    for name, setting in settings.items():
        first = [tune.combinations(network, trees[name])[:1] for network in tune.networks]
        values = tuple(value for combination in first for point in combination for value in point)
        points.append((*setting, *values, *tune.seeded("")[0]))
    return [cell.spec for cell in loader.load_points(points, _on_validation).cells]


def _digest(axes: Axes, settings: Iterable[str], trials: Iterable[Spec], node: Node, at: Labels) -> str:
    """Return the digest of what a tuned file is made from. Names, the results' seeds and their split are not in it, nor
    how often a training is validated."""
    left_out = {"name": True, "seed": True, "evaluate": {"every"}}
    specs = [spec.model_dump(mode="json", exclude_none=True, exclude=left_out) for spec in trials]
    vary = [named.value for named in axes.vary]
    section = node.plain() | ({"at": dict(at)} if at else {})  # however they are spelt
    made_from: Any = [section, vary, list(settings), specs]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _on_validation(cell: Cell) -> Cell:
    spec: Spec = cell.spec
    evaluate = spec.evaluate.model_copy(update={"split": "val", "frames": None})
    return Cell(cell.name, cell.labels, spec.model_copy(update={"evaluate": evaluate}))


def find_tuned(
    named: Node, path: Path, settings: Mapping[str, Point], seeds: tuple[str, ...]
) -> tuple[Tuned, Mapping[str, Data]]:
    """Read the tuned file that a spec names, and compare it with what it would be made from now. Return it with the
    choice of each setting of the spec, and the data that this choice was made on.

    Raises:
        SpecError: it is missing or stale, or does not fit the settings or seeds of the spec.
    """
    tuned = read_tuned(named, path)
    if not tuned.spec.is_file():
        message = f"{tuned.path.name} was made for {tuned.spec}, which does not exist"
        raise SpecError([Problem(message, named.place, "tune this spec itself, or restore that one")])
    current = _read(tuned.spec)  # what is wrong with that spec has its place there
    owners = {name: current.setting_for(labels_of(point)) for name, point in settings.items()}
    problems = tuned_problems(tuned, current.made_from, owners, seeds, named.place)
    if problems:
        raise SpecError(problems)
    own = {name: owner for name, owner in owners.items() if owner is not None}
    choices: dict[str, TunedSetting] = {}
    for name, owner in own.items():
        taken = labels_of(settings[name]) != labels_of(current.settings[owner])
        choices[name or ALL] = replace(tuned.settings[owner or ALL], taken=taken)
    return replace(tuned, settings=choices), {name: current.data[owner] for name, owner in own.items()}


def read_tuning(source: Source, axes: Axes) -> tuple[Tuned | None, Mapping[str, Data], list[Problem]]:
    """Return the tuned file that a spec takes and the data behind it, by setting, with what is wrong with it, or with
    the spec's section `tune`."""
    seed = source.tree.below("seed")
    try:
        if source.tuned is not None and source.tuned.value is not None:
            settings = {setting_name(point): point for point in axes.settings}
            seeds = result_seeds(axes, seed.value if seed else 0)
            return *find_tuned(source.tuned, source.path, settings, seeds), []
        if source.tune is not None:
            _read(source.path)
    except SpecError as error:
        return None, {}, list(error.problems)
    return None, {}, []
