"""Section `compare`: the one comparison that a grid was made for, declared before it runs.

compare: {baseline: kd, primary: staged}   # labels of one axis, or axis=label,... as in the report's rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagedkd.errors import Problem
from stagedkd.spec.fields import nearest
from stagedkd.spec.grid import Axes, Point, canonical, labels_of, setting_name
from stagedkd.spec.yaml import Node

KEYS = ("baseline", "primary")
EXAMPLE = "for example compare: {baseline: kd, primary: staged}"


@dataclass(frozen=True)
class Declared:
    """The comparison that is declared: the names of two settings, such as method=kd."""

    baseline: str
    primary: str


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
    settings = {setting_name(point): point for point in axes.settings}
    if len(settings) < 2:
        return None, [*problems, Problem("compare needs a grid with two settings or more", place, "add grid.axes")]
    found: dict[str, str] = {}
    for name in KEYS:
        below = node.map.get(name)
        if below is not None:
            found[name], message = _find(below.value, settings)
            problems += [Problem(f"compare.{name}: {message}", below.place, _hint(below, settings))] if message else []
    if not problems and found["baseline"] == found["primary"]:
        problems.append(Problem("compare.primary is the baseline itself", node.map["primary"].place, "name another"))
    return (None, problems) if problems else (Declared(found["baseline"], found["primary"]), [])


def _find(value: object, settings: Mapping[str, Point]) -> tuple[str, str]:
    """Return the name of the one setting that a value means, and a message, which is "" unless there is none."""
    text = str(value)
    wanted = [part.strip().rpartition("=")[::2] for part in text.split(",")]
    matches = [
        name for name, point in settings.items() if all(_has(labels_of(point), axis, label) for axis, label in wanted)
    ]
    if len(matches) == 1:
        return matches[0], ""
    return "", f"'{text}' is {len(matches)} settings" if matches else f"there is no setting '{text}'"


def _has(labels: Mapping[str, str], axis: str, label: str) -> bool:
    """Return whether a setting has a label, on a named axis or (for axis "") on any."""
    known = labels.items() if not axis else [(axis, labels.get(axis))]
    return any(canonical(label, {str(value): None}) == value for _, value in known)


def _hint(node: Node, settings: Mapping[str, Point]) -> str:
    labels = dict.fromkeys(label for point in settings.values() for label in labels_of(point).values())
    return nearest(node.value, labels) if "=" not in str(node.value) else nearest(node.value, settings)
