"""A grid: axes of values that are merged over a spec. Every combination of values is a cell.

grid:
  seeds: 3                                      # or a list; the axis `seed`
  folds: 5                                      # or a list; the axis `fold`, which sets data.fold: cross-validation
  vary: [labels, student]                       # what a seed draws again; by default the student alone
  axes:
    recipe: [ce, kd]                            # an axis is a path of the spec; its values label themselves
    student: {w16: {width: 16}, w8: {width: 8}} # labelled values; partial maps are merged
    $size: {small: {clip: {size: 48}, train: {batch: 64}}, large: {}}   # a $ axis sets several sections, a recipe too
  exclude: [{recipe: ce, student: w8}]          # all cells that match
  include: [{recipe: kd, student: w16, seed: 9}]
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stagedkd.errors import Place, Problem
from stagedkd.spec.fields import ROOT, Slot, child, field_names, nearest
from stagedkd.spec.yaml import Node, scalar

MAX_CELLS = 10_000
KEYS = ("seeds", "folds", "vary", "axes", "exclude", "include")
SEED, FOLD = "seed", "fold"
FOLD_PATH = ("data", "fold")
REPEATS = (SEED, FOLD)  # axes that repeat a setting: reports aggregate over them
VARIED = {"data": ("data", "seed"), "labels": ("labels", "seed"), "teacher": ("teacher", "seed"), "student": ("seed",)}
LABEL = re.compile(r"[A-Za-z0-9_.+-]{1,60}\Z")


@dataclass(frozen=True)
class Axis:
    """One axis: its name, the path that it sets (() for several sections), and its values by label.

    In an `open` axis the values label themselves, so that `include` may name new values.
    """

    name: str
    path: tuple[str, ...]
    values: Mapping[str, Node]
    place: Place
    open: bool

    def leaves(self) -> set[tuple[str, ...]]:
        """Return all paths that the axis sets."""
        return {path for node in self.values.values() for path in _leaves(node, self.path)}


Point = tuple[tuple[Axis, str, Node], ...]  # for every axis, a label and its value


@dataclass(frozen=True)
class Axes:
    """A grid as the user wrote it: its axes, its cells as points, and what a seed draws again (() for the student)."""

    axes: tuple[Axis, ...] = ()
    points: tuple[Point, ...] = ((),)
    vary: tuple[Node, ...] = ()

    @property
    def settings(self) -> tuple[Point, ...]:
        """The settings: each combination of labels of all axes but seed and fold that occurs, in order."""
        return tuple({setting_name(point): without_repeats(point) for point in self.points}.values())


def labels_of(point: Point) -> dict[str, str]:
    """Return the label of each axis."""
    return {axis.name: label for axis, label, _ in point}


def cell_name(point: Point) -> str:
    """Return the name of a cell with all its axes, such as recipe=kd,student=w8,seed=3."""
    return ",".join(f"{axis.name}={label}" for axis, label, _ in point)


def without_repeats(point: Point) -> Point:
    """Return a point without its seed and fold."""
    return tuple(value for value in point if value[0].name not in REPEATS)


def setting_name(point: Point) -> str:
    """Return the name of the setting of a cell: the labels of all axes but seed and fold; "" if there is none."""
    return cell_name(without_repeats(point))


def seed_axis(seeds: Mapping[str, Node], vary: Sequence[Node], place: Place) -> Axis:
    """Return the axis of seeds. `vary` says what a seed draws again; () is the student alone."""
    if not vary:
        return Axis(SEED, ("seed",), seeds, place, open=True)
    values = {label: _seeded(node, vary) for label, node in seeds.items()}
    return Axis(SEED, (), values, place, open=True)


def _seeded(seed: Node, vary: Sequence[Node]) -> Node:
    """Return the map that gives `seed` to everything that `vary` names; its problems have the place of the name."""
    sections: dict[str, Node] = {}
    for named in vary:
        node = Node(seed.value, named.place, named.place)
        head, *below = VARIED[str(named.value)]
        sections[head] = Node({below[0]: node}, named.place, named.place) if below else node
    return Node(sections, seed.place, seed.key)


def read_axis(name: str, path: tuple[str, ...], node: Node) -> tuple[Axis | None, list[Problem]]:
    """Read the values of one axis, whose path is known to be one of the spec."""
    reader = _Reader(node)
    return reader.axis_at(name, path, node), reader.problems


def read_grid(node: Node | None) -> tuple[Axes, list[Problem]]:
    """Read a `grid` section; None gives one cell without axes. Return the axes with the cells, and the problems."""
    if node is None:
        return Axes(), []
    reader = _Reader(node)
    axes = reader.read()
    return axes, reader.problems


def matching(axes: Axes, text: str) -> tuple[tuple[Point, ...], str, str]:
    """Return the cells that `axis=label,...` picks, with a message and a hint, which are "" unless no cell matches."""
    picked: dict[str, str] = {}
    names = [axis.name for axis in axes.axes]
    for part in text.split(","):
        name, sign, label = part.strip().partition("=")
        if not sign:
            return (), f"{part.strip()!r} is not of the form axis=label", f"the axes are {', '.join(names)}"
        if name not in names:
            return (), f"there is no axis '{name}'", nearest(name, names)
        known = {labels_of(point)[name]: None for point in axes.points}
        label = canonical(label, known)
        if label not in known:
            return (), f"axis '{name}' has no label '{label}'", nearest(label, known)
        picked[name] = label
    points = tuple(p for p in axes.points if picked.items() <= labels_of(p).items())
    return (points, "", "") if points else ((), f"no cell matches {text}", "the grid excludes it")


def canonical(text: str, known: Mapping[str, object]) -> str:
    """Return a label as the grid writes it: 1e-3 becomes 0.001."""
    return text if text in known else _label_of(scalar(text))


def _label_of(value: object) -> str:
    """Return the label of a plain value; maps and lists give "...", and need a label from the user."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) if isinstance(value, int | str) else "..."


def _leaves(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Iterate over the paths that merging `node` at `path` sets; an empty map sets none."""
    if not isinstance(node.value, dict) or any(name.startswith("$") for name in node.map):
        yield path
        return
    for name, below in node.map.items():
        yield from _leaves(below, (*path, name))


def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether setting one path changes the value at the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


@dataclass
class _Reader:
    node: Node
    problems: list[Problem] = field(default_factory=list[Problem])
    vary: tuple[Node, ...] = ()

    def read(self) -> Axes:
        if not isinstance(self.node.value, dict):
            self._add_problem("'grid' must be a map", self.node.place, "for example grid: {axes: {...}}")
            return Axes()
        for name, node in self.node.map.items():
            if name not in KEYS:
                self._add_problem(f"unknown key 'grid.{name}'", node.key, nearest(name, KEYS))
        self.vary = self._read_vary()
        axes = self._axes()
        if self.problems or not axes:
            if not self.problems:
                self._add_problem("the grid has no axis", self.node.key, "add axes: or seeds:")
            return Axes()
        count = math.prod(len(axis.values) for axis in axes)
        if count > MAX_CELLS:
            self._add_problem(
                f"the grid has {count:,} cells; at most {MAX_CELLS:,} are allowed", self.node.key, "split the grid"
            )
            return Axes()
        rows = [[(axis, label, value) for label, value in axis.values.items()] for axis in axes]
        points = self._excluded(axes, list(itertools.product(*rows)))
        points += self._included(axes, points)
        if not points and not self.problems:
            self._add_problem("the grid excludes all of its cells", self.node.key, "exclude fewer cells")
        return Axes(axes, tuple(points), self.vary)

    def _add_problem(self, message: str, place: Place | None, hint: str = "") -> None:
        self.problems.append(Problem(message, place or self.node.place, hint))

    def _axes(self) -> tuple[Axis, ...]:
        """Read `axes` and `seeds`; no two axes may set the same path."""
        axes: list[Axis] = []
        section = self.node.below("axes")
        if section is not None and not isinstance(section.value, dict):
            hint = "for example axes: {train.lr: [1e-3, 3e-3]}"
            self._add_problem("'grid.axes' must be a map from paths to values", section.place, hint)
        for name, node in section.map.items() if section else ():
            axis = self._axis(name, node)
            if axis and axis.name in (other.name for other in axes):
                self._add_problem(f"duplicate axis '{axis.name}'", axis.place, "rename one of them")
            elif axis:
                clash = [(a, p) for a in axes for p in a.leaves() for q in axis.leaves() if overlap(p, q)]
                if clash:
                    other, path = clash[0]
                    self._add_problem(f"axes '{other.name}' and '{axis.name}' both set '{'.'.join(path)}'", axis.place)
                axes.append(axis)
        for key, name in (("folds", FOLD), ("seeds", SEED)):
            repeats = self.node.below(key)
            if repeats is not None:
                self._check_free(key, repeats, axes)
                axis = self._repeats(key, name, repeats)
                axes += [axis] if axis else []
        return tuple(axes)

    def _read_vary(self) -> tuple[Node, ...]:
        """Read `vary`; () for the default, the student alone."""
        node, before = self.node.below("vary"), len(self.problems)
        if node is None:
            return ()
        hint = f"for example vary: [{', '.join(VARIED)}]"
        if not node.items:
            self._add_problem("'grid.vary' must be a list of what a seed draws again", node.place, hint)
        elif self.node.below("seeds") is None:
            self._add_problem("'grid.vary' needs 'grid.seeds'", node.key, "add seeds: 3")
        for i, item in enumerate(node.items):
            if item.value not in tuple(VARIED):
                self._add_problem(f"a seed cannot draw '{item.value}' again", item.place, nearest(item.value, VARIED))
            elif any(item.value == other.value for other in node.items[:i]):
                self._add_problem(f"'{item.value}' is listed twice", item.place, "remove one of them")
        if len(self.problems) > before or [item.value for item in node.items] == ["student"]:
            return ()
        return node.items

    def _check_free(self, key: str, node: Node, axes: Sequence[Axis]) -> None:
        """Refuse `seeds` or `folds` if an axis sets what they set."""
        drawn = [VARIED[str(named.value)] for named in self.vary] or [("seed",)] if key == "seeds" else [FOLD_PATH]
        for at in drawn:
            if any(overlap(at, path) for axis in axes for path in axis.leaves()):
                message = f"'{key}' and an axis both set '{'.'.join(at)}'"
                self._add_problem(message, node.key, "remove one of them")

    def _repeats(self, key: str, name: str, node: Node) -> Axis | None:
        """Read `seeds` or `folds`: a number of them, counted from 0, or a list."""
        path, what = (("seed",), "seeds") if name == SEED else (FOLD_PATH, "folds")
        if isinstance(node.value, tuple):
            listed = self.axis_at(name, path, node)
            values = dict(listed.values) if listed else dict[str, Node]()
        elif isinstance(node.value, bool) or not isinstance(node.value, int) or not 1 <= node.value <= MAX_CELLS:
            message = f"'grid.{key}' must be a number of {what} from 1 to {MAX_CELLS:,}, or a list of {what}"
            self._add_problem(message, node.place, f"for example {key}: 3")
            return None
        else:
            values = {str(i): Node(i, node.place, node.key) for i in range(node.value)}
        if not values:
            return None
        place = node.key or node.place
        return seed_axis(values, self.vary, place) if name == SEED else Axis(FOLD, path, values, place, open=True)

    def _axis(self, name: str, node: Node) -> Axis | None:
        """Read one axis; None if there is a problem with it."""
        place = node.key or node.place
        path = () if name.startswith("$") else tuple(name.split("."))
        return self.axis_at(name, path, node) if self._is_settable(name, path, place) else None

    def axis_at(self, name: str, path: tuple[str, ...], node: Node) -> Axis | None:
        """Read the values of an axis; None if there is a problem with them."""
        place = node.key or node.place
        values, before = dict[str, Node](), len(self.problems)
        listed = isinstance(node.value, tuple)
        if not listed and not isinstance(node.value, dict):
            self._add_problem(
                f"axis '{name}' must be a list or a map of labelled values", node.place, f"for example {name}: [...]"
            )
            return None
        if listed:
            for item in node.items:
                label = _label_of(item.value)
                if isinstance(item.value, dict | tuple):
                    self._add_problem("this value needs a label", item.place, f"write {name}: {{label: value, ...}}")
                    continue
                if name == "recipe" and isinstance(item.value, str):
                    label = item.value.rsplit("/", 1)[-1].removesuffix(".yaml")
                self._add_value(values, name, label, replace(item, key=place), item.place)
        else:
            for label, item in node.map.items():
                self._add_value(values, name, label, item, item.key or item.place)
        if not values or len(self.problems) > before:
            if len(self.problems) == before:
                self._add_problem(f"axis '{name}' has no value", node.place)
            return None
        return Axis(name.removeprefix("$"), path, values, place, open=listed)

    def _add_value(self, values: dict[str, Node], axis: str, label: str, node: Node, place: Place) -> None:
        """Add one labelled value to `values`, unless there is a problem with it."""
        if label in values:
            self._add_problem(f"duplicate label '{label}' on axis '{axis}'", place, "remove one of them")
        elif not LABEL.match(label):
            self._add_problem(f"'{label}' cannot be a label", place, "use letters, digits and . _ + -")
        elif axis.startswith("$") and not isinstance(node.value, dict):
            self._add_problem(f"a value of axis '{axis}' must be a map of sections", node.place)
        else:
            values[label] = node

    def _is_settable(self, name: str, path: tuple[str, ...], place: Place) -> bool:
        """Return whether an axis may set this path; report a problem if not."""
        if name.removeprefix("$") in REPEATS and name.startswith("$"):
            hint = f"rename it: reports aggregate over the axis {name[1:]}"
            self._add_problem(f"an axis cannot be called '{name}'", place, hint)
            return False
        if path == ("recipe",):
            return True
        if path and path[0] in ("name", "grid", "extends"):
            self._add_problem(f"'{path[0]}' cannot be an axis", place)
            return False
        slot: Slot = ROOT
        for i, part in enumerate(path):
            below = child(slot, part)
            if not below:
                hint = nearest(part, (*field_names(slot), *(("recipe",) if i == 0 else ())), "known keys:")
                self._add_problem(f"axis '{name}' is not a path of the spec", place, hint)
                return False
            slot = below
        return True

    def _excluded(self, axes: Sequence[Axis], points: list[Point]) -> list[Point]:
        """Return the points that no row of `exclude` matches."""
        for row in self._rows("exclude"):
            excluded = self._labels(axes, row, new=False)
            if excluded is None:
                continue
            labels = {axis.name: label for axis, label, _ in excluded}
            if not any(labels.items() <= labels_of(p).items() for p in points):
                self._add_problem("this row excludes no cell", row.place, "remove it")
            points = [p for p in points if not labels.items() <= labels_of(p).items()]
        return points

    def _included(self, axes: Sequence[Axis], points: Sequence[Point]) -> list[Point]:
        """Return the further points of `include`; a row without a seed, or a fold, gives one point for each."""
        included: list[Point] = []
        for row in self._rows("include"):
            labels = self._labels(axes, row, new=True)
            if labels is None:
                continue
            fixed = {axis.name: (axis, label, value) for axis, label, value in labels}
            missing = [a.name for a in axes if a.name not in fixed and a not in self._repeated(axes)]
            if missing:
                self._add_problem(f"this cell does not set {', '.join(missing)}", row.place, "set every axis")
                continue
            rows = [[fixed[a.name]] if a.name in fixed else [(a, k, v) for k, v in a.values.items()] for a in axes]
            for point in itertools.product(*rows):
                if any(labels_of(point) == labels_of(other) for other in (*points, *included)):
                    self._add_problem(f"the grid already has the cell {cell_name(point)}", row.place, "remove it")
                    break
                included.append(point)
        return included

    def _repeated(self, axes: Sequence[Axis]) -> list[Axis]:
        """The axes of `seeds` and `folds`."""
        return [a for a in axes if a.name in REPEATS and self.node.below(f"{a.name}s") is not None]

    def _rows(self, key: str) -> tuple[Node, ...]:
        """Return the rows of `exclude` or `include`."""
        section = self.node.below(key)
        if section is None:
            return ()
        if not isinstance(section.value, tuple) or not all(row.map for row in section.items):
            message = f"'grid.{key}' must be a list of maps from axis to label"
            self._add_problem(message, section.place, f"for example {key}: [{{axis: label}}]")
            return ()
        return section.items

    def _labels(self, axes: Sequence[Axis], row: Node, *, new: bool) -> Point | None:
        """Return the values that a row names. With `new`, an open axis takes values that it does not list."""
        known = {axis.name: axis for axis in axes}
        values: list[tuple[Axis, str, Node]] = []
        for name, node in row.map.items():
            axis, label = known.get(name), _label_of(node.value)
            if axis is None:
                self._add_problem(f"there is no axis '{name}'", node.key, nearest(name, known))
            elif label in axis.values:
                values.append((axis, label, axis.values[label]))
            elif new and axis.open and not isinstance(node.value, dict | tuple) and LABEL.match(label):
                values.append((axis, label, _seeded(node, self.vary) if name == SEED and self.vary else node))
            else:
                self._add_problem(f"axis '{name}' has no label '{label}'", node.place, nearest(label, axis.values))
        return tuple(values) if len(values) == len(row.map) else None
