"""Section `grid`: the axes, and the cells that they make.

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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stagedkd.errors import Place, Problem
from stagedkd.spec.fields import ROOT, Slot, child, field_names, nearest
from stagedkd.spec.grid import (
    FOLD,
    FOLD_PATH,
    REPEATS,
    SEED,
    VARIED,
    Axes,
    Axis,
    Point,
    cell_name,
    label_of,
    labels_of,
    overlap,
    seed_axis,
    seeded,
)
from stagedkd.spec.yaml import Node

MAX_CELLS = 10_000
KEYS = ("seeds", "folds", "vary", "axes", "exclude", "include")
LABEL = re.compile(r"[A-Za-z0-9_.+-]{1,60}\Z")


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
                label = label_of(item.value)
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
            axis, label = known.get(name), label_of(node.value)
            if axis is None:
                self._add_problem(f"there is no axis '{name}'", node.key, nearest(name, known))
            elif label in axis.values:
                values.append((axis, label, axis.values[label]))
            elif new and axis.open and not isinstance(node.value, dict | tuple) and LABEL.match(label):
                values.append((axis, label, seeded(node, self.vary) if name == SEED and self.vary else node))
            else:
                self._add_problem(f"axis '{name}' has no label '{label}'", node.place, nearest(label, axis.values))
        return tuple(values) if len(values) == len(row.map) else None
