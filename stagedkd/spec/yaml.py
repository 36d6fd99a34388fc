"""YAML 1.2 core scalars with the position of every key and value, and nothing that a spec does not need.

PyYAML alone reads `1e-3` as a string, `no` as false, `12:30` as 750 and keeps the last of two equal keys. Here the
nodes are composed by PyYAML and turned into values by the core schema's rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml

from stagedkd.errors import Place, Problem, SpecError, UsageError

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Path_: TypeAlias = tuple["str | int", ...]

# PyYAML's own annotations are partial, so these two are taken untyped
compose: Any = yaml.compose  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
parse: Any = yaml.parse  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

MAX_BYTES, MAX_NODES, MAX_DEPTH = 1 << 20, 20_000, 64

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCT, _HEX = re.compile(r"0o[0-7]+\Z"), re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, and where each key and value stands (by path from the root)."""

    value: Value
    keys: dict[Path_, Place] = field(default_factory=dict[Path_, Place])
    values: dict[Path_, Place] = field(default_factory=dict[Path_, Place])

    def place(self, path: Path_, *, key: bool = False) -> Place | None:
        """The place of `path`, or of its nearest ancestor that stands in the file."""
        for end in range(len(path), -1, -1):
            first, second = (self.keys, self.values) if key or end < len(path) else (self.values, self.keys)
            found = first.get(path[:end]) or second.get(path[:end])
            if found:
                return found
        return None


def scalar(text: str) -> Value:
    """A plain scalar by the YAML 1.2 core schema: `1e-3` is a float, `no` and `1_000` strings, `010` is ten."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.match(text):
        return int(text) if len(text) < 4000 else text
    if _OCT.match(text):
        return int(text[2:], 8)
    if _HEX.match(text):
        return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    return text


def read_yaml(path: Path) -> Document:
    """Read one file.

    Raises:
        UsageError: there is no such file.
        SpecError: not UTF-8, too large, not YAML, a duplicate key, a tag, an alias or a key that is no string.
    """
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder", hint="name a spec file, for example specs/quickstart.yaml") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="name an existing spec file") from None
    if len(raw) > MAX_BYTES:
        raise SpecError([Problem(f"{path} is {len(raw):,} bytes; a spec has at most {MAX_BYTES:,}")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem("the file is not UTF-8", Place(str(path), line, 1, 1, "(not text)"))]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text; `name` stands in positions. Raises SpecError as `read_yaml`."""
    return _Reader(text, name).document()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name, self.lines = text, name, text.splitlines() or [""]
        self.keys: dict[Path_, Place] = {}
        self.values: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def document(self) -> Document:
        self._refuse_aliases()
        try:
            node = cast("yaml.Node | None", compose(self.text, Loader=yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark, 1) if mark else None
            raise SpecError([Problem(f"not YAML: {error.problem or error.context}", place)]) from None
        except yaml.YAMLError as error:
            raise SpecError([Problem(f"not YAML: {error}", self._at(1, 1, 1))]) from None
        except RecursionError:
            raise SpecError([Problem(f"nested deeper than {MAX_DEPTH}", self._at(1, 1, 1))]) from None
        value = {} if node is None else self._value(node, (), 0)
        if not isinstance(value, dict):
            self.problems.append(Problem("a spec is a map of sections", self._at(1, 1, 1), "for example data: ..."))
        if self.problems:
            raise SpecError(self.problems)
        self.values.setdefault((), self._at(1, 1, 1))
        return Document(value, self.keys, self.values)

    def _refuse_aliases(self) -> None:
        """Look at the event stream first: composing would expand aliases (and a billion laughs with them)."""
        depth = 0
        try:
            for event in cast("Iterator[yaml.Event]", parse(self.text, Loader=yaml.SafeLoader)):
                if isinstance(event, yaml.CollectionStartEvent):
                    depth += 1
                elif isinstance(event, yaml.CollectionEndEvent):
                    depth -= 1
                if depth > MAX_DEPTH:
                    raise SpecError([Problem(f"nested deeper than {MAX_DEPTH}", self._place(event.start_mark, 1))])
                anchor = getattr(event, "anchor", None)
                if anchor:
                    sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
                    place = self._place(event.start_mark, len(anchor) + 1)
                    raise SpecError(
                        [Problem(f"anchors and aliases are not read: {sign}{anchor}", place, "use extends")]
                    )
                tag = getattr(event, "tag", None)
                if tag and tag != "!":
                    place = self._place(event.start_mark, 1)
                    raise SpecError([Problem(f"tags are not read: {tag}", place, "write the plain value")])
        except (yaml.YAMLError, RecursionError):
            return  # compose() meets the same fault and reports it

    def _value(self, node: yaml.Node, path: Path_, depth: int) -> Value:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            limit = f"more than {MAX_NODES:,} values" if self.nodes > MAX_NODES else f"nested deeper than {MAX_DEPTH}"
            raise SpecError([Problem(limit, self._place(node.start_mark, 1))])
        self.values[path] = self._node_place(node)
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        text: str = node.value
        return scalar(text) if node.style is None else text

    def _map(self, node: yaml.MappingNode, path: Path_, depth: int) -> Value:
        found: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = self._node_place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem("a key must be a word", place))
                continue
            key: str = key_node.value
            here = (*path, key)
            if key in found:
                first = self.keys[here]
                self.problems.append(Problem(f"'{key}' stands twice", place, f"first at {first}"))
                continue
            self.keys[here] = place
            found[key] = self._value(value_node, here, depth + 1)
        return found

    def _node_place(self, node: yaml.Node) -> Place:
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return self._place(start, max(1, width))

    def _place(self, mark: yaml.Mark, width: int) -> Place:
        return self._at(mark.line + 1, mark.column + 1, width)

    def _at(self, line: int, column: int, width: int) -> Place:
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return Place(self.name, line, column, width, text)
