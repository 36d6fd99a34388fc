"""Values of a spec that come from the command line as `--set a.b=c`."""

from __future__ import annotations

from dataclasses import dataclass

from stagedkd.errors import Place, SpecError, UsageError
from stagedkd.spec.yaml import Node, parse_yaml


@dataclass(frozen=True)
class Override:
    """One `--set`: its text, its path and its value."""

    text: str
    path: tuple[str, ...]
    node: Node


def parse_override(text: str) -> Override:
    """Read `a.b=c`. Raises UsageError: it is not of this form, or the value is not YAML."""
    name, sign, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not sign or not all(keys):
        raise UsageError(f"--set {text!r} is not of the form a.b=c", hint="for example --set train.lr=1e-3")
    try:
        node = parse_yaml(f"value: {value}", "--set").map["value"]
    except SpecError as error:
        hint = "give a YAML value, such as 3 or [a, b]"
        raise UsageError(f"--set {text}: {error.problems[0].message}", hint=hint) from None
    return Override(text, keys, _placed(node, Place("--set", 1, 1, len(name), text)))


def _placed(node: Node, place: Place) -> Node:
    """Return a node in which it and everything below it have one place."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _placed(below, place) for name, below in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_placed(item, place) for item in value)
    return Node(value, place, place)
