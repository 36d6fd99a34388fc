"""A grid: axes of values that are laid over a spec, every combination a cell.

grid:
  seeds: 3                                      # or a list; the axis `seed`
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
KEYS = ("seeds", "axes", "exclude", "include")
LABEL = re.compile(r"[A-Za-z0-9_.+-]{1,60}\Z")


@dataclass(frozen=True)
class Axis:
    """One axis: its name, the path that it sets (() for several sections), and its values by label. `open`: the values
    label themselves, so that `include` may name new ones."""

    name: str
    path: tuple[str, ...]
    values: Mapping[str, Node]
    place: Place
    open: bool

    def leaves(self) -> set[tuple[str, ...]]:
        """The paths of all that the axis sets."""
        return {path for node in self.values.values() for path in _leaves(node, self.path)}


Point = tuple[tuple[Axis, str, Node], ...]  # for every axis a label and its value


@dataclass(frozen=True)
class Axes:
    """A grid as it is written: its axes, and its cells as points."""

    axes: tuple[Axis, ...] = ()
    points: tuple[Point, ...] = ((),)


def labels_of(point: Point) -> dict[str, str]:
    """Axis to label."""
    return {axis.name: label for axis, label, _ in point}


def cell_name(point: Point) -> str:
    """All axes of a cell, such as recipe=kd,student=w8,seed=3."""
    return ",".join(f"{axis.name}={label}" for axis, label, _ in point)


def read_grid(node: Node | None) -> tuple[Axes, list[Problem]]:
    """The axes and cells of a `grid` section (one cell without axes where there is none), and what is wrong with it."""
    if node is None:
        return Axes(), []
    reader = _Reader(node)
    found = reader.read()
    return found, reader.problems


def matching(axes: Axes, text: str) -> tuple[tuple[Point, ...], str, str]:
    """The cells that `axis=label,...` picks; else a fault and a suggestion."""
    wanted: dict[str, str] = {}
    names = [axis.name for axis in axes.axes]
    for part in text.split(","):
        name, sign, label = part.strip().partition("=")
        if not sign:
            return (), f"{part.strip()!r} is not of the form axis=label", f"the axes are {', '.join(names)}"
        if name not in names:
            return (), f"there is no axis '{name}'", nearest(name, names)
        known = {found: None for point in axes.points for at, found in labels_of(point).items() if at == name}
        label = canonical(label, known)
        if label not in known:
            return (), f"axis '{name}' has no '{label}'", nearest(label, known)
        wanted[name] = label
    found = tuple(p for p in axes.points if wanted.items() <= labels_of(p).items())
    return found, "" if found else f"no cell is {text}", "" if found else "the grid excludes it"


def canonical(text: str, known: Mapping[str, object]) -> str:
    """A label as the grid writes it: 1e-3 is 0.001."""
    return text if text in known else _label_of(scalar(text))


def _label_of(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) if isinstance(value, int | str) else "..."


def _leaves(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths that laying `node` at `path` sets; an empty map sets none."""
    if not isinstance(node.value, dict) or any(name.startswith("$") for name in node.map):
        yield path
        return
    for name, below in node.map.items():
        yield from _leaves(below, (*path, name))


def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether setting one path touches the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


@dataclass
class _Reader:
    node: Node
    problems: list[Problem] = field(default_factory=list[Problem])

    def read(self) -> Axes:
        if not isinstance(self.node.value, dict):
            self._fault("'grid' is a map", self.node.place, "grid: {axes: {...}}")
            return Axes()
        for name, node in self.node.map.items():
            if name not in KEYS:
                self._fault(f"unknown key 'grid.{name}'", node.key, nearest(name, KEYS))
        axes = self._axes()
        if self.problems or not axes:
            if not self.problems:
                self._fault("the grid has no axis", self.node.key, "add axes: or seeds:")
            return Axes()
        count = math.prod(len(axis.values) for axis in axes)
        if count > MAX_CELLS:
            self._fault(f"the grid has {count:,} cells; at most {MAX_CELLS:,}", self.node.key, "split it")
            return Axes()
        rows = [[(axis, label, value) for label, value in axis.values.items()] for axis in axes]
        points = self._excluded(axes, list(itertools.product(*rows)))
        points += self._included(axes, points)
        if not points and not self.problems:
            self._fault("no cell is left", self.node.key, "exclude fewer")
        return Axes(axes, tuple(points))

    def _fault(self, message: str, place: Place | None, hint: str = "") -> None:
        self.problems.append(Problem(message, place or self.node.place, hint))

    def _axes(self) -> tuple[Axis, ...]:
        found: list[Axis] = []
        said = self.node.below("axes")
        if said is not None and not isinstance(said.value, dict):
            self._fault("'grid.axes' is a map from paths to values", said.place, "axes: {train.lr: [1e-3, 3e-3]}")
        for name, node in said.map.items() if said else ():
            axis = self._axis(name, node)
            if axis and axis.name in (other.name for other in found):
                self._fault(f"there are two axes '{axis.name}'", axis.place, "name one of them otherwise")
            elif axis:
                clash = [(a, p) for a in found for p in a.leaves() for q in axis.leaves() if overlap(p, q)]
                if clash:
                    other, path = clash[0]
                    self._fault(f"axes '{other.name}' and '{axis.name}' both set '{'.'.join(path)}'", axis.place)
                found.append(axis)
        seeds = self.node.below("seeds")
        if seeds is not None:
            if any(overlap(("seed",), path) for axis in found for path in axis.leaves()):
                self._fault("'seeds' and an axis both set 'seed'", seeds.key, "leave one out")
            axis = self._seeds(seeds)
            found += [axis] if axis else []
        return tuple(found)

    def _seeds(self, node: Node) -> Axis | None:
        if isinstance(node.value, tuple):
            return self._axis("seed", node)
        if isinstance(node.value, bool) or not isinstance(node.value, int) or not 1 <= node.value <= MAX_CELLS:
            self._fault("'grid.seeds' is a number of seeds or a list of them", node.place, "seeds: 3")
            return None
        values = {str(i): Node(i, node.place, node.key) for i in range(node.value)}
        return Axis("seed", ("seed",), values, node.key or node.place, open=True)

    def _axis(self, name: str, node: Node) -> Axis | None:
        place = node.key or node.place
        path = () if name.startswith("$") else tuple(name.split("."))
        if not self._settable(name, path, place):
            return None
        values, faults = dict[str, Node](), len(self.problems)
        listed = isinstance(node.value, tuple)
        if not listed and not isinstance(node.value, dict):
            self._fault(f"axis '{name}' is a list or a map of labelled values", node.place, f"{name}: [...]")
            return None
        if listed:
            for item in node.items:
                label = _label_of(item.value)
                if isinstance(item.value, dict | tuple):
                    self._fault("this value needs a label", item.place, f"{name}: {{label: value, ...}}")
                    continue
                if name == "recipe" and isinstance(item.value, str):
                    label = item.value.rsplit("/", 1)[-1].removesuffix(".yaml")
                self._value(values, name, label, replace(item, key=place), item.place)
        else:
            for label, item in node.map.items():
                self._value(values, name, label, item, item.key or item.place)
        if not values or len(self.problems) > faults:
            if len(self.problems) == faults:
                self._fault(f"axis '{name}' has no value", node.place)
            return None
        return Axis(name.removeprefix("$"), path, values, place, open=listed)

    def _value(self, values: dict[str, Node], axis: str, label: str, node: Node, place: Place) -> None:
        if label in values:
            self._fault(f"'{label}' stands twice on axis '{axis}'", place, "leave one out")
        elif not LABEL.match(label):
            self._fault(f"'{label}' cannot be a label", place, "letters, digits and . _ + -")
        elif axis.startswith("$") and not isinstance(node.value, dict):
            self._fault(f"a value of axis '{axis}' is a map of sections", node.place)
        else:
            values[label] = node

    def _settable(self, name: str, path: tuple[str, ...], place: Place) -> bool:
        if path == ("recipe",):
            return True
        if path and path[0] in ("name", "grid", "extends"):
            self._fault(f"'{path[0]}' cannot be an axis", place)
            return False
        slot: Slot = ROOT
        for i, part in enumerate(path):
            below = child(slot, part)
            if not below:
                hint = nearest(part, (*field_names(slot), *(("recipe",) if i == 0 else ())), "known here:")
                self._fault(f"axis '{name}' is no path of a spec", place, hint)
                return False
            slot = below
        return True

    def _excluded(self, axes: Sequence[Axis], points: list[Point]) -> list[Point]:
        for row in self._rows("exclude"):
            wanted = self._labels(axes, row, new=False)
            if wanted is None:
                continue
            names = {axis.name: label for axis, label, _ in wanted}
            hit = [p for p in points if names.items() <= labels_of(p).items()]
            if not hit:
                self._fault("this excludes no cell", row.place, "leave it out")
            points = [p for p in points if not names.items() <= labels_of(p).items()]
        return points

    def _included(self, axes: Sequence[Axis], points: Sequence[Point]) -> list[Point]:
        found: list[Point] = []
        for row in self._rows("include"):
            said = self._labels(axes, row, new=True)
            if said is None:
                continue
            given = {axis.name: (axis, label, value) for axis, label, value in said}
            seeds = [a for a in axes if a.name == "seed" and a.name not in given and self.node.below("seeds")]
            missing = [axis.name for axis in axes if axis.name not in given and axis not in seeds]
            if missing:
                self._fault(f"this cell lacks {', '.join(missing)}", row.place, "an included cell names all axes")
                continue
            rows = [[given[a.name]] if a.name in given else [(a, k, v) for k, v in a.values.items()] for a in axes]
            for point in itertools.product(*rows):
                if any(labels_of(point) == labels_of(other) for other in (*points, *found)):
                    self._fault(f"the cell {cell_name(point)} is there already", row.place, "leave it out")
                    break
                found.append(point)
        return found

    def _rows(self, key: str) -> tuple[Node, ...]:
        said = self.node.below(key)
        if said is None:
            return ()
        if not isinstance(said.value, tuple) or not all(row.map for row in said.items):
            self._fault(f"'grid.{key}' is a list of maps from axis to label", said.place, f"{key}: [{{axis: label}}]")
            return ()
        return said.items

    def _labels(self, axes: Sequence[Axis], row: Node, *, new: bool) -> Point | None:
        """The values that a row names; with `new`, an open axis takes values that it does not list."""
        known = {axis.name: axis for axis in axes}
        found: list[tuple[Axis, str, Node]] = []
        for name, node in row.map.items():
            axis, label = known.get(name), _label_of(node.value)
            if axis is None:
                self._fault(f"there is no axis '{name}'", node.key, nearest(name, known))
            elif label in axis.values:
                found.append((axis, label, axis.values[label]))
            elif new and axis.open and not isinstance(node.value, dict | tuple) and LABEL.match(label):
                found.append((axis, label, node))
            else:
                self._fault(f"axis '{name}' has no '{label}'", node.place, nearest(label, axis.values))
        return tuple(found) if len(found) == len(row.map) else None
