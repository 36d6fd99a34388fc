"""From a file to validated specs: parents < recipe < file < the cell's recipe < the cell < --set, validated once a
cell, every problem of every cell reported together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from stagedkd.errors import Place, Problem, SpecError, UsageError
from stagedkd.spec.grid import Axes, Point, cell_name, labels_of, matching, overlap, read_grid
from stagedkd.spec.inherit import OWN, RECIPES, Source, read_recipe, read_source, specs_root, with_recipe
from stagedkd.spec.merge import Merger, overlay, without
from stagedkd.spec.problems import at, problems_of
from stagedkd.spec.rules import check_rules, warnings
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.networks import family_of
from stagedkd.spec.schema.networks.file import put_code_digest
from stagedkd.spec.yaml import Node, Path_, parse_yaml

__all__ = ["Cell", "Experiment", "load_experiment", "load_one", "load_spec", "specs_root"]
LONGEST_NAME = 120
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]*\Z")


@dataclass(frozen=True)
class Cell:
    """One validated spec of an experiment; `labels` maps axis to label (none without a grid)."""

    name: str
    labels: Mapping[str, str]
    spec: Spec


@dataclass(frozen=True)
class Experiment:
    """A spec file: one cell, or those of its grid. `axes` maps axis to the labels that occur; `notes` are what a
    reader should know: what fell in a merge, and warnings, each with its place; `trees` keep, for each cell, where
    every value stands; `files` are those of the project that it was read from: the spec, its parents, recipes and code
    of one's own."""

    name: str
    cells: tuple[Cell, ...]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    notes: tuple[Problem, ...] = ()
    trees: Mapping[str, Node] = field(default_factory=dict[str, Node])
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, spec: Spec) -> Experiment:
        """A spec on its own."""
        return cls(spec.name, (Cell("", {}, spec),))

    @property
    def is_grid(self) -> bool:
        """Whether the file has a grid, of which there may be one cell."""
        return bool(self.axes)


def load_spec(path: str | Path, overrides: Sequence[str] = (), cell: str | None = None) -> Spec:
    """Read and validate a spec.

    Args:
        path: the YAML file.
        overrides: `a.b=c` strings, values typed by the rules of the file.
        cell: of a grid, the one to take, such as "student=w8,seed=3".
    Raises:
        SpecError: with every problem found, each with its place.
        UsageError: no such file, a wrong override, or a grid of which no one cell is picked.
    """
    return load_one(path, overrides, (cell,) if cell else ()).cells[0].spec


def load_one(path: str | Path, overrides: Sequence[str] = (), cells: Sequence[str] = ()) -> Experiment:
    """As `load_experiment`, for one cell. Raises UsageError, too, where there are several."""
    found = load_experiment(path, overrides, cells)
    if len(found.cells) != 1:
        some = "\n    ".join(c.name for c in found.cells[:8]) + ("\n    ..." if len(found.cells) > 8 else "")
        raise UsageError(f"{path} has {len(found.cells)} cells:\n    {some}", hint="pick one with --cell")
    return found


def load_experiment(path: str | Path, overrides: Sequence[str] = (), cells: Sequence[str] = ()) -> Experiment:
    """Read and validate a spec file with all cells of its grid, or those that any of `cells` matches.

    Raises:
        SpecError: with every problem of every cell, each with its place.
        UsageError: no such file, a wrong override, or a pick that matches nothing.
    """
    return _Loader(Path(path), overrides).load(cells)


@dataclass(frozen=True)
class _Override:
    text: str
    path: tuple[str, ...]
    node: Node


class _Loader:
    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path, self.root = path, specs_root(path)
        self.merger = Merger()
        self.source: Source = read_source(path, self.merger)
        self.sets = [_parse_override(text) for text in overrides]
        self.digests: dict[Path, str] = {}
        self.trees: dict[str, Node] = {}
        self.recipes: dict[str, Node | None] = {}
        self.found: dict[tuple[str, Place | None], tuple[Problem, list[str]]] = {}

    def load(self, picked: Sequence[str]) -> Experiment:
        axes, faults = read_grid(self.source.grid)
        for problem in (*self.merger.problems, *faults):
            self._say(problem, "")
        self._check_overrides(axes)
        points = _picked(axes, axes.points, picked) if not faults else ()
        if faults:
            self._without_grid()
        cells = [cell for point in points if (cell := self._cell(point)) is not None]
        errors = [p for p in self._problems(len(points)) if p.severity == "error"]
        if errors:
            raise SpecError(errors)
        name = cells[0].spec.name if not axes.axes else self._named("")
        labels = {a.name: tuple(dict.fromkeys(labels_of(p)[a.name] for p in points)) for a in axes.axes}
        notes = tuple(p for p in self._problems(len(points)) if p.severity != "error")
        return Experiment(name, tuple(cells), labels, notes, self.trees, self._files())

    def _files(self) -> tuple[Path, ...]:
        named = {Path(node.place.file) for node in self.recipes.values() if node}
        files = {path.resolve() for path in (*self.source.files, *named, *self.digests)}
        return tuple(sorted(path for path in files if not path.is_relative_to(RECIPES)))  # the package's are its own

    def _without_grid(self) -> None:
        """What is wrong beside a faulty grid; what an axis would have set is not missed."""
        self._cell(())
        axes = self.source.grid.below("axes") if self.source.grid else None
        for name in axes.map if axes else ():
            head = f"'{name.split('.')[0]}"
            self.found = {k: v for k, v in self.found.items() if not (k[0].startswith(head) and "missing" in k[0])}

    # ------------------------------------------------------------ one cell

    def _cell(self, point: Point) -> Cell | None:
        cell, merger = cell_name(point), Merger(list(self.merger.notes))
        try:
            tree = self._tree(point, merger)
        except SpecError as error:
            for problem in error.problems:
                self._say(problem, cell)
            return None
        values: dict[str, Any] = tree.plain()
        values["name"] = self._named(cell)
        problems = [*merger.problems, *self._read_own_code(values, tree)]
        spec = None
        try:
            spec = Spec.model_validate(values)
        except ValidationError as error:
            problems += problems_of(error, self._with_name(tree))
        if spec is not None:
            problems += [at(tree, path, fault, hint, key=True) for fault, path, hint in check_rules(spec)]
            if not problems:
                soft = [at(tree, path, fault, hint, key=True) for fault, path, hint in warnings(spec)]
                problems += [replace(p, severity="warning") for p in soft]
        for problem in (*problems, *merger.notes):
            self._say(problem, cell)
        self.trees[cell] = tree
        return Cell(cell, labels_of(point), spec) if spec else None

    def _tree(self, point: Point, merger: Merger) -> Node:
        tree = self.source.tree
        recipes = [value for axis, _, value in point if axis.path == ("recipe",)]
        recipes += [value.map["recipe"] for axis, _, value in point if not axis.path and "recipe" in value.map]
        recipes += [given.node for given in self.sets if given.path == ("recipe",)]
        for named in recipes:
            said = str(named.value)  # what is no word is refused, and so never kept
            if said not in self.recipes:
                self.recipes[said] = read_recipe(named, self.root, self.path.parent)
            tree = with_recipe(tree, self.recipes[said], merger)
        for axis, _, value in point:
            if axis.path != ("recipe",):
                sections = value if axis.path else without(value, frozenset({"recipe"}))
                tree = merger.merge(tree, overlay(tree, axis.path, sections))
        for given in self.sets:
            if given.path[0] not in OWN:
                tree = merger.merge(tree, overlay(tree, given.path, given.node))
        return tree

    def _with_name(self, tree: Node) -> Node:
        said = [given.node for given in self.sets if given.path == ("name",)] or [self.source.name]
        return replace(tree, value={**tree.map, "name": said[-1]}) if said[-1] else tree

    def _named(self, cell: str) -> Any:
        """The file's name, or its own `name`, and what tells this run from others: the cell and the overrides."""
        said = [given.node.value for given in self.sets if given.path == ("name",)]
        own = self.source.name.plain() if self.source.name else short_name(self.path.stem)
        name = said[-1] if said else own
        if not isinstance(name, str) or (not NAME.match(name)):
            return name  # for validation to refuse
        told = [cell] if cell else []
        told += [given.text for given in self.sets if given.path != ("name",)] if not said else []
        return short_name("+".join([name, *told]))

    # ------------------------------------------------------------ --set

    def _check_overrides(self, axes: Axes) -> None:
        for given in self.sets:
            for axis in axes.axes:
                hit = [path for path in axis.leaves() if overlap(path, given.path)]
                if hit:
                    raise UsageError(
                        f"--set {given.text}: the grid's axis '{axis.name}' sets '{'.'.join(hit[0])}'",
                        hint=f"pick cells with --cell '{axis.name}={next(iter(axis.values))}'",
                    )
            if given.path[0] in ("extends", "grid"):
                raise UsageError(f"--set {given.text}: '{given.path[0]}' is not set from the command line")
            for end in range(1, len(given.path)):
                above = self.source.tree.at(given.path[:end])
                if above is not None and isinstance(above.value, tuple):
                    here = ".".join(given.path[:end])
                    hint = f"set the whole list: {here}=[...]"
                    raise UsageError(f"--set cannot reach into the list '{here}'", hint=hint)

    # ------------------------------------------------------------ one's own code

    def _read_own_code(self, values: dict[str, Any], tree: Node) -> list[Problem]:
        """Put the digests of the user's files into the values of networks and of losses `file`; files are read, never
        run."""
        problems: list[Problem] = []
        networks = [(path, network, family_of(network.get("arch"))) for path, network in _networks(values)]
        putters = [(path, network, family.put_digest) for path, network, family in networks if family]
        putters += [(path, loss, put_code_digest) for path, loss in _own_losses(values)]
        for path, given, put_digest in putters:
            if "digest" in given:
                problems.append(at(tree, (*path, "digest"), "'digest' is not yours to set", "", key=True))
            name, fault, hint = put_digest(given, self.root, self._digest)
            problems += [at(tree, (*path, name), fault, hint)] if fault else []
        return problems

    def _digest(self, file: Path) -> str | None:
        """SHA-256 of a file below the root; None where it is not there, or not ours to read."""
        if file not in self.digests:
            try:
                if not file.resolve().is_relative_to(self.root.resolve()):
                    return None
                with file.open("rb") as stream:
                    self.digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
            except (OSError, ValueError, RuntimeError):
                return None
        return self.digests[file]

    # ------------------------------------------------------------ problems

    def _say(self, problem: Problem, cell: str) -> None:
        _, cells = self.found.setdefault((problem.message, problem.place), (problem, []))
        cells.append(cell)

    def _problems(self, count: int) -> list[Problem]:
        """Each problem once, in the order of the files; where only some cells have it, with the first of them."""
        found: list[Problem] = []
        for problem, cells in self.found.values():
            grid = self.source.grid
            if grid is not None and cells[0] and len(set(cells)) < count:
                which = f"in {len(set(cells))} of {count} cells, the first is {cells[0]}; grid at"
                problem = replace(problem, related=(*problem.related, (which, grid.key or grid.place)))
            found.append(problem)
        return sorted(found, key=self._order)

    def _order(self, problem: Problem) -> tuple[bool, str, int, int]:
        """The file itself first, then its parents."""
        place = problem.place
        return (place.file != str(self.path), place.file, place.line, place.column) if place else (False, "", 0, 0)


def short_name(name: str) -> str:
    """A name that can be a folder: other characters become _, and what is too long is cut and told by its digest."""
    plain = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", name)
    plain = plain if plain[:1].isalnum() else "x" + plain
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    tail = "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return plain[: LONGEST_NAME - len(tail)] + tail


def _parse_override(text: str) -> _Override:
    name, sign, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not sign or not all(keys):
        raise UsageError(f"--set {text!r} is not of the form a.b=c", hint="for example --set train.lr=1e-3")
    try:
        node = parse_yaml(f"value: {value}", "--set").map["value"]
    except SpecError as error:
        raise UsageError(
            f"--set {text}: {error.problems[0].message}", hint="a YAML value, such as 3 or [a, b]"
        ) from None
    return _Override(text, keys, _placed(node, Place("--set", 1, 1, len(name), text)))


def _placed(node: Node, place: Place) -> Node:
    """A node and all below it, at one place."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _placed(below, place) for name, below in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_placed(item, place) for item in value)
    return Node(value, place, place)


def _picked(axes: Axes, points: tuple[Point, ...], picked: Sequence[str]) -> tuple[Point, ...]:
    if not picked:
        return points
    if not axes.axes:
        raise UsageError("--cell is for grids, and this spec has none", hint="leave --cell out")
    kept: dict[str, Point] = {}
    for text in picked:
        found, fault, hint = matching(axes, text)
        if fault:
            raise UsageError(f"--cell {text}: {fault}", hint=hint)
        kept |= {cell_name(point): point for point in found}
    return tuple(point for point in points if cell_name(point) in kept)


def _networks(values: Mapping[str, Any]) -> Iterable[tuple[Path_, dict[str, Any]]]:
    found: list[tuple[Path_, Any]] = [(("teacher",), values.get("teacher")), (("student",), values.get("student"))]
    for name in ("co_teachers", "cascade"):
        listed = values.get(name)
        row = cast("tuple[Any, ...]", listed) if isinstance(listed, tuple) else ()
        found += [((name, i), network) for i, network in enumerate(row)]
    for path, network in found:
        if isinstance(network, dict):
            yield path, network


def _own_losses(values: Mapping[str, Any]) -> Iterable[tuple[Path_, dict[str, Any]]]:
    distill = _map(values.get("distill"))
    for name, phase in _map(distill.get("phases")).items():
        loss = _map(_map(phase).get("losses")).get("file")
        if isinstance(loss, dict):
            yield ("distill", "phases", name, "losses", "file"), cast("dict[str, Any]", loss)


def _map(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
