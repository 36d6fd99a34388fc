"""Section `tune`: the values that `stagedkd tune` tries, on validation and on seeds that the results never use.

tune:
  values: {student.train.lr: [1e-2, 3e-2]}   # paths of the spec, as grid.axes has; several paths give all combinations
  seeds: [100, 101, 102]
  rule: worst_seed                           # the value whose worst seed is best; mean: the value whose mean is best
  at: distill.pairing=auto                   # tune the settings with these labels; all others take their choices

A value is judged by the accuracy of the network that it belongs to: `teacher...`, `cascade.1...` (the first assistant),
`control_train...`, and the student for all other paths. Networks are tuned in this order: teacher, assistants, student,
control. Each is trained with what was chosen for those before it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from stagedkd.errors import Place, Problem, SpecError
from stagedkd.spec.declared import Labels, key_hint, labels_named
from stagedkd.spec.fields import ROOT, Slot, child, field_names, nearest
from stagedkd.spec.grid import SEED, Axes, Axis, Point, labels_of, overlap, seed_axis
from stagedkd.spec.merge import Merger, overlay
from stagedkd.spec.problems import inclusive_limits
from stagedkd.spec.read_grid import read_axis
from stagedkd.spec.yaml import Node

KEYS = ("values", "seeds", "rule", "at")
RULES = ("worst_seed", "mean")
FEWEST_SEEDS = 3
NOT_TUNED = ("seed", "name", "extends", "recipe", "evaluate", "data", "control")
ASSISTANT = re.compile(r"[1-9][0-9]?\Z")
EXAMPLE = "for example tune: {values: {student.train.lr: [1e-2, 3e-2]}, seeds: [100, 101, 102]}"
AT_EXAMPLE = "for example at: distill.pairing=auto"


@dataclass(frozen=True)
class Tune:
    """A `tune` section: the values by field, the tuning seeds as an axis, the rule, and the labels of the settings that
    are tuned. Every other setting takes the choice of the one that it would be with these labels. {}: all are tuned."""

    fields: tuple[Axis, ...]
    seeds: Axis
    rule: str
    place: Place
    at: Labels = field(default_factory=dict[str, str])

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that are tuned, by the names of their stages, in the order in which they are tuned."""
        names = {network_of(axis.path) for axis in self.fields}
        order = ("teacher", *sorted(n for n in names if n.startswith("assistant")), "student", "control-ce")
        return tuple(name for name in order if name in names)

    def combinations(self, network: str, tree: Node) -> tuple[Point, ...]:
        """Return the combinations of values that are tried for a network. Fields of an assistant that the setting with
        this `tree` lacks are left out; () if none is left."""
        axes = [axis for axis in self.fields if network_of(axis.path) == network and applies(axis, tree)]
        rows = [[(axis, label, value) for label, value in axis.values.items()] for axis in axes]
        return tuple(itertools.product(*rows)) if axes else ()

    def seeded(self, network: str) -> list[Point]:
        """Return the tuning seeds as points. The seed of a teacher is its own, so it is set where a teacher is
        tuned."""
        points = [((self.seeds, label, value),) for label, value in self.seeds.values.items()]
        if network != "teacher":
            return points
        seeds = {label: Node(int(label), self.place) for label in self.seeds.values}
        own = Axis("teacher.seed", ("teacher", "seed"), seeds, self.place, open=True)
        return [(*point, (own, point[0][1], seeds[point[0][1]])) for point in points]


def network_of(path: Sequence[str]) -> str:
    """Return the stage of the network by whose accuracy a value at `path` is judged."""
    if path[0] == "cascade" and len(path) > 1:
        return f"assistant-{path[1]}"
    return {"teacher": "teacher", "control_train": "control-ce"}.get(path[0], "student")


def applies(axis: Axis, tree: Node) -> bool:
    """Return whether a spec has what a field sets: the assistant of `cascade.N...`; True for any other field."""
    if axis.path[0] != "cascade" or len(axis.path) < 2:
        return True
    cascade = tree.below("cascade")
    return cascade is not None and len(cascade.items) >= int(axis.path[1])


def set_value(tree: Node, path: tuple[str, ...], node: Node, merger: Merger) -> Node:
    """Merge a value over what a tree has at a path. A path into the list `cascade` sets the value of one assistant.

    Raises:
        SpecError: there is no such assistant, or it is a bare share.
    """
    if path[:1] == ("cascade",) and len(path) > 1:
        known = ASSISTANT.match(path[1])
        item = tree.at(("cascade", int(path[1]) - 1)) if known else None
        if item is None or not isinstance(item.value, dict):
            hint = "list the assistant in cascade, as a map with its arch"
            raise SpecError([Problem(f"'{'.'.join(path)}' is no assistant of this spec", node.place, hint)])
        return put(tree, path, node)
    return merger.merge(tree, overlay(tree, path, node))


def put(tree: Node, path: Sequence[str], value: Node) -> Node:
    """Return a tree with `value` at a path, in which `cascade.1` is the first assistant. Missing maps are made."""
    if not path:
        return replace(value, over=tree) if tree.place != value.place else value
    head, rest = path[0], path[1:]
    if isinstance(tree.value, tuple):
        items = list(tree.items)
        items[int(head) - 1] = put(items[int(head) - 1], rest, value)
        return replace(tree, value=tuple(items))
    below = tree.below(head) or Node({}, value.place, value.key)
    return replace(tree, value={**tree.map, head: put(below, rest, value)})


def choose(accuracies: Sequence[Sequence[float | None]], rule: str) -> int:
    """Return the number of the best value, by its accuracies (one a seed; None for a training that diverged, which
    counts as 0). `worst_seed` takes the value whose worst seed is best; `mean` that whose mean is best. A tie goes to
    the other of the two, then to the value that is listed first.

    Raises:
        ValueError: there is no value, or every value diverged on every seed.
    """
    if not any(accuracy is not None for row in accuracies for accuracy in row):
        raise ValueError("every training diverged")

    def score(i: int) -> tuple[float, float, int]:
        row = [accuracy or 0.0 for accuracy in accuracies[i]]
        worst, mean = min(row), round(fmean(row), 12)
        return (worst, mean, -i) if rule == "worst_seed" else (mean, worst, -i)

    return max(range(len(accuracies)), key=score)


def edge_of(axis: Axis, label: str) -> str:
    """Return `lowest` or `highest` if this value is at the edge of the numbers that were tried, else ""."""
    values = {name: node.value for name, node in axis.values.items()}
    numbers = [v for v in values.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or len(numbers) < 2 or values[label] in inclusive_limits(axis.path):
        return ""
    return {min(numbers): "lowest", max(numbers): "highest"}.get(values[label], "")  # type: ignore[arg-type]


def read_tune(node: Node, axes: Axes, default_seed: object) -> tuple[Tune | None, list[Problem]]:
    """Read a `tune` section.

    Args:
        axes: the grid, whose seeds the results use. default_seed: the spec's own `seed`, for a grid without seeds.
    """
    reader = _Reader(node, axes, default_seed)
    tune = reader.read()
    return (None if reader.problems else tune), reader.problems


@dataclass
class _Reader:
    node: Node
    axes: Axes
    default_seed: object
    problems: list[Problem] = field(default_factory=list[Problem])

    def read(self) -> Tune | None:
        node = self.node
        if not isinstance(node.value, dict):
            return self._add("'tune' must be a map", node.place, EXAMPLE)
        for name, below in node.map.items():
            if name not in KEYS:
                self._add(f"unknown key 'tune.{name}'", below.key, key_hint(name, KEYS))
        misspelt = not node.map.keys() <= set(KEYS)  # then a key that is missing only follows from it
        for name in ("values", "seeds"):
            if name not in node.map and not misspelt:
                self._add(f"tune needs {name}", node.key, EXAMPLE)
        rule = node.map.get("rule", Node("worst_seed", node.place))
        if rule.value not in RULES:
            self._add("'tune.rule' must be worst_seed or mean", rule.place, nearest(rule.value, RULES))
        fields, seeds = self._fields(node.map.get("values")), self._seeds(node.map.get("seeds"))
        place, at = node.key or node.place, self._at(node.map.get("at"))
        return Tune(fields, seed_axis(seeds, self.axes.vary, place), str(rule.value), place, at)

    def _add(self, message: str, place: Place | None, hint: str = "") -> None:
        self.problems.append(Problem(message, place or self.node.place, hint))

    def _at(self, node: Node | None) -> Labels:
        """Return the labels of the settings that are tuned. With them, every setting must be one of these."""
        if node is None:
            return {}
        settings = [labels_of(point) for point in self.axes.settings]
        if len(settings) < 2:
            self._add("'tune.at' needs a grid with two settings or more", node.place, "remove it")
            return {}
        labels, message, hint = labels_named(node.value, settings, AT_EXAMPLE)
        if message:
            self._add(f"tune.at: {message}", node.place, hint)
        for setting in settings:
            if not message and {**setting, **labels} not in settings:
                named = ",".join(f"{axis}={label}" for axis, label in {**setting, **labels}.items())
                message = f"tune.at: the grid has no setting '{named}', whose choice another one would take"
                self._add(message, node.place, "include it, or name other labels")
        return labels

    def _fields(self, node: Node | None) -> tuple[Axis, ...]:
        if node is None:
            return ()
        if not node.map:
            self._add("'tune.values' must be a map from paths to values", node.place, EXAMPLE)
        fields: list[Axis] = []
        for name, values in node.map.items():
            path = tuple(name.split("."))
            if not self._is_settable(name, path, values.key or values.place):
                continue
            axis, problems = read_axis(name, path, values)
            self.problems += problems
            clash = next((other for other in fields if overlap(other.path, path)), None)
            if clash is not None:
                self._add(f"'{clash.name}' and '{name}' both set '{name}'", values.key, "remove one of them")
            fields += [axis] if axis else []
        return tuple(fields)

    def _is_settable(self, name: str, path: tuple[str, ...], place: Place) -> bool:
        """Return whether `tune` may set a path: one of the spec, that no axis sets and that draws nothing."""
        before = len(self.problems)
        if path[0] in NOT_TUNED or path[-1] == "seed":
            self._add(f"'{name}' cannot be tuned", place, "tune fields such as student.train.lr")
        slot: Slot = ROOT
        for i, part in enumerate(path if len(self.problems) == before else ()):
            is_assistant = i == 1 and path[0] == "cascade" and ASSISTANT.match(part)
            below = child(slot, 0 if is_assistant else part)
            if not below:
                known = "count assistants from 1: cascade.1.train.lr" if path[0] == "cascade" and i == 1 else ""
                hint = known or nearest(part, field_names(slot), "known keys:")
                self._add(f"'{name}' is not a path of the spec", place, hint)
                break
            slot = below
        for axis in self.axes.axes:
            if axis.path and any(overlap(at, path) for at in axis.leaves()):
                self._add(f"the grid's axis '{axis.name}' sets '{name}'", place, "remove it from tune.values")
        return len(self.problems) == before

    def _seeds(self, node: Node | None) -> dict[str, Node]:
        if node is None:
            return {}
        if not isinstance(node.value, tuple) or any(not _is_seed(item.value) for item in node.items):
            self._add("'tune.seeds' must be a list of seeds", node.place, "for example seeds: [100, 101, 102]")
            return {}
        seeds = {str(item.value): item for item in node.items}
        if len(seeds) < FEWEST_SEEDS:
            message = f"'tune.seeds' needs {FEWEST_SEEDS} or more different seeds, and has {len(seeds)}"
            self._add(message, node.place, "one lucky seed would decide")
        for label in result_seeds(self.axes, self.default_seed):
            if label in seeds:
                message = f"seed {label} is both a tuning seed and a seed of the results"
                self._add(message, seeds[label].place, "choose tuning seeds that the results never use")
        return seeds


def result_seeds(axes: Axes, default: object) -> tuple[str, ...]:
    """Return the seeds that the results use: those of the grid's cells, else the spec's own."""
    labels = (label for point in axes.points for axis, label, _ in point if axis.name == SEED)
    return tuple(dict.fromkeys(labels)) or (str(default),)


def chosen_points(fields: Iterable[Axis], labels: Mapping[str, str]) -> Point:
    """Return the values that were chosen, as a point: `labels` are the labels by field."""
    return tuple((axis, labels[axis.name], axis.values[labels[axis.name]]) for axis in fields if axis.name in labels)


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
