"""Section `compare`: the one comparison that a grid was made for, declared before it runs.

compare: {baseline: kd, primary: staged}   # labels of one axis, or axis=label,... as in the report's rows
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from stagedkd.errors import Problem
from stagedkd.spec.fields import nearest
from stagedkd.spec.grid import Axes, canonical, labels_of
from stagedkd.spec.yaml import Node

KEYS = ("baseline", "primary")
EXAMPLE = "for example compare: {baseline: kd, primary: staged}"

Labels: TypeAlias = Mapping[str, str]  # by axis, in the grid's order


@dataclass(frozen=True)
class Declared:
    """The comparison that is declared. Labels of all axes name one setting. Labels of some axes name all settings that
    have them: each is compared with the one that differs in these axes alone, and their mean is what was declared."""

    baseline: Labels
    primary: Labels


def read_compare(node: Node | None, axes: Axes) -> tuple[Declared | None, list[Problem]]:
    """Read a `compare` section of a file with this grid."""
    if node is None:
        return None, []
    if not isinstance(node.value, dict):
        return None, [Problem("'compare' must be a map", node.place, EXAMPLE)]
    place = node.key or node.place
    problems = [
        Problem(f"unknown key 'compare.{name}'", below.key, nearest(name, KEYS))
        for name, below in node.map.items()
        if name not in KEYS
    ]
    if not problems:  # else a key that is missing only follows from a misspelt one
        problems = [Problem(f"compare needs {name}", place, EXAMPLE) for name in KEYS if name not in node.map]
    settings = [labels_of(point) for point in axes.settings]
    if len(settings) < 2:
        return None, [*problems, Problem("compare needs a grid with two settings or more", place, "add grid.axes")]
    found: dict[str, Labels] = {}
    for name in KEYS:
        below = node.map.get(name)
        if below is not None:
            found[name], message, hint = _named(str(below.value), settings)
            problems += [Problem(f"compare.{name}: {message}", below.place, hint)] if message else []
    if problems:
        return None, problems
    declared, message, hint = _declared(found["baseline"], found["primary"], settings)
    return declared, [Problem(f"compare.primary {message}", node.map["primary"].place, hint)] if message else []


def complete(settings: Iterable[Labels], named: Collection[str]) -> tuple[Labels, ...]:
    """Return the labels of all axes but the named ones, for which a grid has every combination of the named ones."""
    found: dict[tuple[tuple[str, str], ...], set[tuple[str, ...]]] = {}
    for labels in settings:
        rest = tuple((axis, label) for axis, label in labels.items() if axis not in named)
        found.setdefault(rest, set()).add(tuple(labels[axis] for axis in named))
    every = set[tuple[str, ...]]().union(*found.values())
    return tuple(dict(rest) for rest, combinations in found.items() if combinations == every)


def _named(text: str, settings: Sequence[Labels]) -> tuple[Labels, str, str]:
    """Return the labels that a text names, with a message and a hint, which are "" unless no setting has them."""
    known: dict[str, dict[str, None]] = {axis: {} for axis in settings[0]}
    for setting in settings:
        for axis, label in setting.items():
            known[axis][label] = None
    wanted: dict[str, str] = {}
    for part in text.split(","):
        axis, sign, label = part.strip().rpartition("=")
        if sign and axis not in known:
            return {}, f"the grid has no axis '{axis}'", nearest(axis, known)
        having = [name for name in known if axis in ("", name) and canonical(label, known[name]) in known[name]]
        if not having:
            every = dict.fromkeys(each for name in known if axis in ("", name) for each in known[name])
            return {}, f"there is no setting '{text}'", nearest(label, every)
        if len(having) > 1:
            return {}, f"axes {' and '.join(having)} have '{label}'", f"write {having[0]}={label}"
        wanted[having[0]] = canonical(label, known[having[0]])
    if not _having(wanted, settings):
        return {}, f"there is no setting '{text}'", "the grid excludes it"
    return {axis: wanted[axis] for axis in known if axis in wanted}, "", ""


def _having(labels: Labels, settings: Sequence[Labels]) -> list[Labels]:
    return [setting for setting in settings if labels.items() <= setting.items()]


def _declared(baseline: Labels, primary: Labels, settings: Sequence[Labels]) -> tuple[Declared | None, str, str]:
    """Return the comparison, or a message and a hint about the primary setting."""
    one, other = _having(baseline, settings), _having(primary, settings)
    if one == other:
        return None, "is the baseline itself", "name another"
    if len(one) == len(other) == 1:
        return Declared(one[0], other[0]), "", ""
    if baseline.keys() != primary.keys():
        said = f"is of {', '.join(primary)}, and the baseline of {', '.join(baseline)}"
        return None, said, "name the same axes in both, or all axes"
    if not complete(settings, tuple(baseline)):
        return None, "has no setting to compare", f"the grid excludes some {', '.join(baseline)} of every other axis"
    return Declared(baseline, primary), "", ""
