"""A grid: axes of values that are merged over a spec. Every combination of values is a cell. `spec/read_grid.py` reads
the section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stagedkd.errors import Place
from stagedkd.spec.fields import nearest
from stagedkd.spec.yaml import Node, scalar

SEED, FOLD = "seed", "fold"
FOLD_PATH = ("data", "fold")
REPEATS = (SEED, FOLD)  # axes that repeat a setting: reports aggregate over them
VARIED = {"data": ("data", "seed"), "labels": ("labels", "seed"), "teacher": ("teacher", "seed"), "student": ("seed",)}


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


def setting_of(labels: Mapping[str, str]) -> str:
    """Return the name of the setting of a cell with these labels, as `setting_name` does."""
    return ",".join(f"{axis}={label}" for axis, label in labels.items() if axis not in REPEATS)


def seed_axis(seeds: Mapping[str, Node], vary: Sequence[Node], place: Place) -> Axis:
    """Return the axis of seeds. `vary` says what a seed draws again; () is the student alone."""
    if not vary:
        return Axis(SEED, ("seed",), seeds, place, open=True)
    values = {label: seeded(node, vary) for label, node in seeds.items()}
    return Axis(SEED, (), values, place, open=True)


def seeded(seed: Node, vary: Sequence[Node]) -> Node:
    """Return the map that gives `seed` to everything that `vary` names; its problems have the place of the name."""
    sections: dict[str, Node] = {}
    for named in vary:
        node = Node(seed.value, named.place, named.place)
        head, *below = VARIED[str(named.value)]
        sections[head] = Node({below[0]: node}, named.place, named.place) if below else node
    return Node(sections, seed.place, seed.key)


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
    return text if text in known else label_of(scalar(text))


def label_of(value: object) -> str:
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
