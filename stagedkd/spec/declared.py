"""Section `compare`: the one comparison that a grid was made for, declared before it runs.

compare: {baseline: kd, primary: staged}   # labels of one axis, or axis=label,... as in the report's rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    have them: each is compared with the one that differs in these axes alone, and the mean `over` them was declared."""

    baseline: Labels
    primary: Labels
    over: int = 1


def read_compare(node: Node | None, axes: Axes) -> tuple[Declared | None, list[Problem]]:
    """Read a `compare` section of a file with this grid."""
    if node is None:
        return None, []
    if not isinstance(node.value, dict):
        return None, [Problem("'compare' must be a map", node.place, EXAMPLE)]
    place = node.key or node.place
    problems = [
        Problem(f"unknown key 'compare.{name}'", below.key, key_hint(name, KEYS))
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
            found[name], message, hint = labels_named(below.value, settings, EXAMPLE)
            problems += [Problem(f"compare.{name}: {message}", below.place, hint)] if message else []
    if problems:
        return None, problems
    declared, message, hint = _declared(found["baseline"], found["primary"], settings)
    return declared, [Problem(f"compare.primary {message}", node.map["primary"].place, hint)] if message else []


def key_hint(name: str, keys: Sequence[str]) -> str:
    """Return the hint for an unknown key, which may be the rest of several labels without quotes."""
    return 'several labels need quotes: "axis=label,axis=label"' if "=" in name else nearest(name, keys)


def _shared(baseline: Labels, primary: Labels, settings: Sequence[Labels]) -> list[tuple[Labels, Labels]]:
    """Return the settings with the labels of the baseline and of the primary one that are alike in all others."""
    beside = [(setting, {**setting, **baseline}) for setting in _having(primary, settings)]
    return [(other, own) for own, other in beside if other in settings]


def labels_named(value: object, settings: Sequence[Labels], example: str) -> tuple[Labels, str, str]:
    """Return the labels that a value names, with a message and a hint, which are "" unless no setting has them."""
    if isinstance(value, dict | tuple) or value is None:
        return {}, "it must be a label, or axis=label,...", example
    text = str(value)
    known: dict[str, dict[str, None]] = {axis: {} for axis in settings[0]}
    for setting in settings:
        for axis, label in setting.items():
            known[axis][label] = None
    wanted: dict[str, str] = {}
    for part in text.split(","):
        axis, sign, label = (piece.strip() for piece in part.rpartition("="))
        if not label:
            return {}, "it must be a label, or axis=label,...", example
        if sign and axis not in known:
            return {}, f"the grid has no axis '{axis}'", nearest(axis, known)
        having = [name for name in known if axis in ("", name) and canonical(label, known[name]) in known[name]]
        if not having:
            every = dict.fromkeys(each for name in known if axis in ("", name) for each in known[name])
            return {}, f"there is no setting '{text}'", nearest(label, every)
        if len(having) > 1:
            return {}, f"axes {' and '.join(having)} have '{label}'", f"write {having[0]}={label}"
        if having[0] in wanted:
            return {}, f"'{text}' has two labels of axis '{having[0]}'", "give one label of each axis"
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
    shared = _shared(baseline, primary, settings)
    if not shared:
        return None, "has no setting that the baseline has, too", "no two settings differ in these labels alone"
    return Declared(*shared[0]) if len(shared) == 1 else Declared(baseline, primary, len(shared)), "", ""
