"""Load a file as validated specs: parents < recipe < file < the cell's recipe < the cell < --set.

Every cell is validated once, and the problems of all cells are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagedkd.errors import Origin, Place, Problem, SpecError, UsageError
from stagedkd.spec.declared import Declared, read_compare
from stagedkd.spec.grid import Axes, Point, cell_name, labels_of, matching, overlap, setting_name, setting_of
from stagedkd.spec.inherit import (
    FILE_KEYS,
    NOT_INHERITED,
    RECIPES,
    Source,
    read_recipe,
    read_source,
    specs_root,
    with_recipe,
)
from stagedkd.spec.leaks import leak_problem
from stagedkd.spec.merge import Merger, overlay, without
from stagedkd.spec.names import short_name
from stagedkd.spec.override import parse_override
from stagedkd.spec.own_files import OwnFiles
from stagedkd.spec.problems import can_be_list, problem_at, problems_of
from stagedkd.spec.read_grid import read_grid
from stagedkd.spec.rules import check_rules, warnings
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.data import Data
from stagedkd.spec.tune import set_value
from stagedkd.spec.tuned import ALL, Tuned, TunedSetting, without_fields
from stagedkd.spec.yaml import Node

__all__ = ["Cell", "Experiment", "load_experiment", "load_one", "load_spec", "specs_root"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]*\Z")


@dataclass(frozen=True)
class Cell:
    """One validated spec of an experiment. `labels` maps axis to label and is empty without a grid."""

    name: str
    labels: Mapping[str, str]
    spec: Spec


@dataclass(frozen=True)
class Experiment:
    """A spec file: one cell, or the cells of its grid.

    `axes` maps each axis to the labels that occur. `notes` are warnings and what a merge dropped, each with its place.
    `trees` holds the values of each cell with their places, by the name of the cell. `files` are the files of the
    project that were read: the spec, its parents, recipes and the user's own code. `origin` is for hints. `tuned` is
    what was tuned, by setting, and `declared` the comparison that the file declares.
    """

    name: str
    cells: tuple[Cell, ...]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    notes: tuple[Problem, ...] = ()
    trees: Mapping[str, Node] = field(default_factory=dict[str, Node])
    files: tuple[Path, ...] = ()
    origin: Origin = field(default_factory=Origin)
    tuned: Mapping[str, TunedSetting] = field(default_factory=dict[str, TunedSetting])
    declared: Declared | None = None

    @classmethod
    def of(cls, spec: Spec) -> Experiment:
        """Return the experiment of a single spec."""
        return cls(spec.name, (Cell("", {}, spec),), origin=spec.origin)

    @property
    def is_grid(self) -> bool:
        """Whether the file has a grid, even one of a single cell."""
        return bool(self.axes)


def load_spec(path: str | Path, overrides: Sequence[str] = (), cell: str | None = None) -> Spec:
    """Read and validate a spec.

    Args:
        path: the YAML file.
        overrides: `a.b=c` strings, whose values are read by the rules of the file.
        cell: the cell of a grid to load, such as "student=w8,seed=3".
    Raises:
        SpecError: the spec is wrong; the error has every problem with its place.
        UsageError: the file does not exist, an override is wrong, or not exactly one cell of a grid is picked.
    """
    return load_one(path, overrides, (cell,) if cell else ()).cells[0].spec


def load_one(path: str | Path, overrides: Sequence[str] = (), cells: Sequence[str] = ()) -> Experiment:
    """Like `load_experiment`, but for one cell. Raises UsageError if there are several."""
    experiment = load_experiment(path, overrides, cells)
    count = len(experiment.cells)
    if count != 1:
        names = "\n    ".join(cell.name for cell in experiment.cells[:8]) + ("\n    ..." if count > 8 else "")
        raise UsageError(f"{path} has {count} cells:\n    {names}", hint="pick one with --cell")
    return experiment


def load_experiment(path: str | Path, overrides: Sequence[str] = (), cells: Sequence[str] = ()) -> Experiment:
    """Read and validate a spec file with all cells of its grid, or with those that any of `cells` matches.

    Raises:
        SpecError: the spec is wrong; the error has every problem of every cell with its place.
        UsageError: the file does not exist, an override is wrong, or a pick matches no cell.
    """
    return Loader(Path(path), overrides).load(cells)


class Loader:
    """Reads one file. With `tuned`, what a tuned file chose is merged into each cell."""

    def __init__(self, path: Path, overrides: Sequence[str], *, tuned: bool = True) -> None:
        self.path, self.root = path, specs_root(path)
        self.merger = Merger()
        self.source: Source = read_source(path, self.merger)
        self.overrides = [parse_override(text) for text in overrides]
        self.takes_tuned = tuned
        self.tuned: Tuned | None = None
        self.tuned_on: Mapping[str, Data] = {}
        self.own_files = OwnFiles(self.root)
        self.trees: dict[str, Node] = {}
        self.recipes: dict[str, Node | None] = {}
        self.problems: dict[tuple[str, Place | None], tuple[Problem, list[str]]] = {}

    def load(self, picked: Sequence[str]) -> Experiment:
        axes, grid_problems = read_grid(self.source.grid)
        for problem in (*self.merger.problems, *grid_problems):
            self._add(problem, "")
        self._check_overrides(axes)
        points = _pick(axes, axes.points, picked) if not grid_problems else ()
        declared = None
        if grid_problems:
            self._check_without_grid()
        else:
            declared = self._read_own(axes)
        cells = [cell for point in points if (cell := self._cell(point)) is not None]
        self._check_leaks(cells)
        errors = [p for p in self._merged_problems(len(points)) if p.severity == "error"]
        if errors:
            raise SpecError(errors)
        name = cells[0].spec.name if not axes.axes else self._name_of("")
        labels = {a.name: tuple(dict.fromkeys(labels_of(p)[a.name] for p in points)) for a in axes.axes}
        notes = tuple(p for p in self._merged_problems(len(points)) if p.severity != "error")
        experiment = Experiment(name, tuple(cells), labels, notes, self.trees, self._files(), self._origin(picked))
        chosen = without_fields(self.tuned.settings, self._overridden()) if self.tuned else {}
        return replace(experiment, tuned=chosen, declared=declared)

    def _overridden(self) -> list[str]:
        """Return the paths that --set replaces as a whole."""
        return [".".join(override.path) for override in self.overrides]

    def _read_own(self, axes: Axes) -> Declared | None:
        """Read what the file says about its settings: `tune`, `tuned` and `compare`. Return what it compares."""
        from stagedkd.spec.tuning import read_tuning  # it loads specs, too

        declared, problems = read_compare(self.source.compare, axes)
        self.tuned, self.tuned_on, wrong = read_tuning(self.source, axes) if self.takes_tuned else (None, {}, [])
        for problem in (*problems, *wrong):
            self._add(problem, "")
        return declared

    def _check_leaks(self, cells: Sequence[Cell]) -> None:
        """Refuse cells that test clips on which their tuned values were chosen."""
        named = self.source.tuned
        for cell in cells if named and self.tuned_on else ():
            leak = leak_problem(cell.spec, self.tuned_on[setting_of(cell.labels)], named.place) if named else None
            if leak:
                self._add(leak, cell.name)

    def load_points(self, points: Sequence[Point], change: Callable[[Cell], Cell]) -> Experiment:
        """Validate cells that are not those of the file's own grid, each changed by `change`. Raises SpecError."""
        self.problems, self.trees = {}, {}
        cells = [change(cell) for point in points if (cell := self._cell(point)) is not None]
        errors = [p for p in self._merged_problems(len(points)) if p.severity == "error"]
        if errors:
            raise SpecError(errors)
        axes = {axis.name: None for point in points for axis, _, _ in point}
        labels = {name: tuple(dict.fromkeys(cell.labels.get(name, "-") for cell in cells)) for name in axes}
        return Experiment(self._name_of(""), tuple(cells), labels, (), self.trees, self._files(), self._origin(()))

    def _origin(self, picked: Sequence[str]) -> Origin:
        """Return the file with the overrides and the picked cells."""
        options = [("--set", override.text) for override in self.overrides] + [("--cell", cell) for cell in picked]
        return Origin(str(self.path), tuple(chain.from_iterable(options)))

    def _files(self) -> tuple[Path, ...]:
        """Return the files of the project that were read. The recipes of the package are not among them."""
        recipes = {Path(node.place.file) for node in self.recipes.values() if node}
        tuned = [self.tuned.path] if self.tuned else []
        files = {path.resolve() for path in (*self.source.files, *recipes, *self.own_files.digests, *tuned)}
        return tuple(sorted(path for path in files if not path.is_relative_to(RECIPES)))

    def _check_without_grid(self) -> None:
        """Find the other problems of a spec whose grid is wrong. A value that an axis would set may be missing."""
        self._cell(())
        axes = self.source.grid.below("axes") if self.source.grid else None
        for name in axes.map if axes else ():
            head = f"'{name.split('.')[0]}"
            self.problems = {
                k: v for k, v in self.problems.items() if not (k[0].startswith(head) and "missing" in k[0])
            }

    # ------------------------------------------------------------ one cell

    def _cell(self, point: Point) -> Cell | None:
        """Merge and validate one cell; None if its spec is wrong."""
        cell, merger = cell_name(point), Merger(list(self.merger.notes))
        try:
            tree = self.tree_of(point, merger)
        except SpecError as error:
            for problem in error.problems:
                self._add(problem, cell)
            return None
        values: dict[str, Any] = tree.plain()
        values["name"] = self._name_of(cell)
        problems = [*merger.problems, *self.own_files.put_digests(values, tree)]
        spec = None
        try:
            spec = Spec.model_validate(values)
        except ValidationError as error:
            problems += problems_of(error, self._with_name(tree))
        if spec is not None:
            problems += [problem_at(tree, p.path, p.message, p.hint, key=True) for p in check_rules(spec)]
            if not problems:
                placed = [problem_at(tree, p.path, p.message, p.hint, key=True) for p in warnings(spec)]
                problems += [replace(p, severity="warning") for p in placed]
        for problem in (*problems, *merger.notes):
            self._add(problem, cell)
        self.trees[cell] = tree
        return Cell(cell, labels_of(point), spec.loaded_from(self._origin((cell,) if cell else ()))) if spec else None

    def tree_of(self, point: Point, merger: Merger) -> Node:
        """Merge the cell's recipe, the cell, what was tuned and the overrides over the file."""
        tree = self.source.tree
        recipes = [value for axis, _, value in point if axis.path == ("recipe",)]
        recipes += [value.map["recipe"] for axis, _, value in point if not axis.path and "recipe" in value.map]
        recipes += [override.node for override in self.overrides if override.path == ("recipe",)]
        for named in recipes:
            name = str(named.value)  # read_recipe refuses a value that is not a word, so none of these is stored
            if name not in self.recipes:
                self.recipes[name] = read_recipe(named, self.root, self.path.parent)
            tree = with_recipe(tree, self.recipes[name], merger)
        for axis, _, value in point:
            if axis.path != ("recipe",):
                sections = value if axis.path else without(value, frozenset({"recipe"}))
                tree = set_value(tree, axis.path, sections, merger)
        if self.tuned is not None:
            for name, node in self.tuned.settings[setting_name(point) or ALL].values.items():
                tree = set_value(tree, tuple(name.split(".")), node, merger)
        for override in self.overrides:
            if override.path[0] not in NOT_INHERITED:
                tree = merger.merge(tree, overlay(tree, override.path, override.node))
        return tree

    def _with_name(self, tree: Node) -> Node:
        """Return a tree with the node of the name, so that a problem with the name has a place."""
        names = [override.node for override in self.overrides if override.path == ("name",)] or [self.source.name]
        return replace(tree, value={**tree.map, "name": names[-1]}) if names[-1] else tree

    def _name_of(self, cell: str) -> Any:
        """Return the name of a cell: the file's name or its `name`, then the cell and the overrides.

        The overrides are left out if one of them sets `name`.
        """
        names = [override.node.value for override in self.overrides if override.path == ("name",)]
        default = self.source.name.plain() if self.source.name else short_name(self.path.stem)
        name = names[-1] if names else default
        if not isinstance(name, str) or (not NAME.match(name)):
            return name  # validation will refuse it
        parts = [cell] if cell else []
        parts += [override.text for override in self.overrides if override.path != ("name",)] if not names else []
        return short_name("+".join([name, *parts]))

    # ------------------------------------------------------------ --set

    def _check_overrides(self, axes: Axes) -> None:
        """Refuse an override of what an axis sets, of `extends` or `grid`, or of one item of a list.

        Raises:
            UsageError: an override is wrong.
        """
        for override in self.overrides:
            for axis in axes.axes:
                overlaps = [path for path in axis.leaves() if overlap(path, override.path)]
                if overlaps:
                    raise UsageError(
                        f"--set {override.text}: the grid's axis '{axis.name}' sets '{'.'.join(overlaps[0])}'",
                        hint=f"pick cells with --cell '{axis.name}={next(iter(axis.values))}'",
                    )
            if override.path[0] in ("extends", *FILE_KEYS):
                message = f"--set {override.text}: '{override.path[0]}' cannot be set from the command line"
                raise UsageError(message, hint=f"change {override.path[0]} in the file")
            for end in range(1, len(override.path)):
                above = self.source.tree.at(override.path[:end])
                item = override.path[end].isdigit() and can_be_list(override.path[:end])
                if above is not None and (isinstance(above.value, tuple) or (item and above.value is not None)):
                    name = ".".join(override.path[:end])
                    hint = f"set the whole list: {name}=[...]"
                    raise UsageError(f"--set cannot change one item of the list '{name}'", hint=hint)

    # ------------------------------------------------------------ problems

    def _add(self, problem: Problem, cell: str) -> None:
        """Add a problem of a cell ("" for all cells); the same problem of several cells is kept once."""
        _, cells = self.problems.setdefault((problem.message, problem.place), (problem, []))
        cells.append(cell)

    def _merged_problems(self, count: int) -> list[Problem]:
        """Return each problem once, in the order of the files.

        A problem that only some of `count` cells have names the first of them.
        """
        problems: list[Problem] = []
        for problem, cells in self.problems.values():
            grid = self.source.grid
            if grid is not None and cells[0] and len(set(cells)) < count:
                which = f"in {len(set(cells))} of {count} cells, the first is {cells[0]}; grid at"
                problem = replace(problem, related=(*problem.related, (which, grid.key or grid.place)))
            problems.append(problem)
        return sorted(problems, key=self._order)

    def _order(self, problem: Problem) -> tuple[bool, str, int, int]:
        """Sort key of a problem: the file itself comes first, then its parents."""
        place = problem.place
        return (place.file != str(self.path), place.file, place.line, place.column) if place else (False, "", 0, 0)


def _pick(axes: Axes, points: tuple[Point, ...], picked: Sequence[str]) -> tuple[Point, ...]:
    """Return the points that any of `picked` matches, in the order of the grid; all points if nothing is picked."""
    if not picked:
        return points
    if not axes.axes:
        raise UsageError("--cell needs a spec with a grid, and this spec has none", hint="remove --cell")
    names: set[str] = set()
    for text in picked:
        matches, message, hint = matching(axes, text)
        if message:
            raise UsageError(f"--cell {text}: {message}", hint=hint)
        names |= {cell_name(point) for point in matches}
    return tuple(point for point in points if cell_name(point) in names)
