"""Read YAML 1.2 core scalars with the position of every key and value, and nothing that a spec does not need.

PyYAML alone reads `1e-3` as a string, `no` as false and `12:30` as 750, and keeps the last of two equal keys. Here
PyYAML only composes the nodes; the rules of the core schema turn them into values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml

from stagedkd.errors import Place, Problem, SpecError, UsageError, remedy

Scalar: TypeAlias = "bool | int | float | str | None"
Path_: TypeAlias = tuple["str | int", ...]

# PyYAML's own annotations are partial, so these are untyped. The C loader is faster.
compose: Any = yaml.compose  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
parse: Any = yaml.parse  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_BYTES, MAX_NODES, MAX_DEPTH = 1 << 20, 20_000, 64
MAX_DIGITS = 300  # of an integer, which so fits into a float; a longer one is a word

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCT, _HEX = re.compile(r"0o[0-7]+\Z"), re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it comes from.

    `key` is the place of its key (None in a list and at the root). `over` is the value that a child, a cell or --set
    overrode with this one; that value may itself override another.
    """

    value: Scalar | dict[str, Node] | tuple[Node, ...]
    place: Place
    key: Place | None = None
    over: Node | None = None

    @property
    def map(self) -> dict[str, Node]:
        """The entries of a map; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Node, ...]:
        """The items of a list; empty for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    def below(self, part: str | int) -> Node | None:
        """Return the child at a key or index; None if there is none."""
        if isinstance(part, str):
            return self.map.get(part)
        return self.items[part] if 0 <= part < len(self.items) else None

    def at(self, path: Path_) -> Node | None:
        """Return the node at exactly this path; None if there is none."""
        node: Node | None = self
        for part in path:
            node = node.below(part) if node is not None else None
        return node

    def nearest(self, path: Path_) -> tuple[Node, bool]:
        """Return the node at this path, or of its nearest existing ancestor, and whether it is the path itself."""
        node = self
        for part in path:
            child = node.below(part)
            if child is None:
                return node, False
            node = child
        return node, True

    def where(self, path: Path_, *, key: bool = False) -> Place:
        """Return the place of the value (or key) at `path`, or of the key of its nearest existing ancestor."""
        node, exact = self.nearest(path)
        return (node.key or node.place) if key or not exact else node.place

    def plain(self) -> Any:
        """Return the value without places. Lists become tuples, since strict frozen models take no lists."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        return tuple(item.plain() for item in self.value) if isinstance(self.value, tuple) else self.value


def scalar(text: str) -> Scalar:
    """Convert a plain scalar by the YAML 1.2 core schema: `1e-3` is a float, `no` and `1_000` words, `010` ten."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    for form, base, start in ((_INT, 10, 0), (_OCT, 8, 2), (_HEX, 16, 2)):
        if form.match(text):
            return int(text[start:], base) if len(text) <= MAX_DIGITS else text
    if _FLOAT.match(text):
        return float(text)
    return text


def read_yaml(path: Path) -> Node:
    """Read one file, whose root must be a map.

    Raises:
        UsageError: the file does not exist or cannot be read.
        SpecError: the file is not UTF-8, too large or not YAML, or has a duplicate key, a tag, an alias or a key that
            is not a string.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe without a writer would be waited for, a device may never end
            what = "a folder" if path.is_dir() else "a pipe or a device, not a file"
            raise UsageError(f"{path} is {what}", hint="name a spec file, for example specs/quickstart.yaml")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="name an existing spec file") from None
    except ValueError:  # a zero byte in the name
        raise UsageError(f"{str(path)!r} cannot be the name of a file", hint="name an existing spec file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=remedy(error)) from None
    if len(raw) > MAX_BYTES:
        place = Place(str(path), 1, 1, 1, "...")
        raise SpecError([Problem(f"the file has {size:,} bytes; a spec may have at most {MAX_BYTES:,}", place)])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem("the file is not UTF-8", Place(str(path), line, 1, 1, "(not text)"))]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Node:
    """Parse YAML text; `name` is the file in the places. Raises SpecError like `read_yaml`."""
    return _Reader(text, name).document()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)  # YAML's line breaks, and no others
        self.problems: list[Problem] = []

    def document(self) -> Node:
        try:
            self._check_limits()
            node = cast("yaml.Node | None", compose(self.text, Loader=LOADER))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark, 1) if mark else self._at(1, 1, 1)
            raise SpecError([Problem(f"not YAML: {error.problem or error.context}", place)]) from None
        except yaml.YAMLError as error:
            raise SpecError([Problem(f"not YAML: {str(error).splitlines()[0]}", self._at(1, 1, 1))]) from None
        root = Node({}, self._at(1, 1, 1)) if node is None else self._value(node, None)
        if not isinstance(root.value, dict):
            self.problems.append(
                Problem("a spec must be a map of sections", self._at(1, 1, 1), "for example data: ...")
            )
        if self.problems:
            raise SpecError(self.problems)
        return Node(root.value, self._at(1, 1, 1))

    def _check_limits(self) -> None:
        """Check the event stream against the limits before composing.

        Composing would expand aliases, as in a "billion laughs" attack, and recurse.
        """
        depth = count = 0
        for event in cast("Iterator[yaml.Event]", parse(self.text, Loader=LOADER)):
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if not isinstance(event, yaml.NodeEvent):
                continue
            count += 1
            depth += isinstance(event, yaml.CollectionStartEvent)
            if event.anchor:
                sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
                message = f"YAML anchors and aliases are not supported: {sign}{event.anchor}"
                self._refuse(event, message, "use extends", event.anchor)
            tag = getattr(event, "tag", None)
            if tag and tag != "!":
                short = tag.replace("tag:yaml.org,2002:", "!!")
                self._refuse(event, f"YAML tags are not supported: {short}", "write the plain value")
            if depth > MAX_DEPTH:
                self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
            if count > MAX_NODES:
                self._refuse(event, f"more than {MAX_NODES:,} values")

    def _refuse(self, event: yaml.Event, message: str, hint: str = "", anchor: str = "") -> None:
        raise SpecError([Problem(message, self._place(event.start_mark, len(anchor) + 1), hint)])

    def _value(self, node: yaml.Node, key: Place | None) -> Node:
        place = self._node_place(node)
        if isinstance(node, yaml.MappingNode):
            return Node(self._map(node), place, key)
        if isinstance(node, yaml.SequenceNode):
            return Node(tuple(self._value(item, None) for item in node.value), place, key)
        assert isinstance(node, yaml.ScalarNode)
        text: str = node.value
        return Node(text if node.style else scalar(text), place, key)

    def _map(self, node: yaml.MappingNode) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self._node_place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem("a key must be a word", place))
                continue
            name: str = key_node.value
            if name in entries:
                first = entries[name].key
                assert first is not None
                related = (("first at", first),)
                self.problems.append(Problem(f"duplicate key '{name}'", place, "remove one of them", related))
                continue
            entries[name] = self._value(value_node, place)
        return entries

    def _node_place(self, node: yaml.Node) -> Place:
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return self._place(start, max(1, width))

    def _place(self, mark: yaml.Mark, width: int) -> Place:
        return self._at(mark.line + 1, mark.column + 1, width)

    def _at(self, line: int, column: int, width: int) -> Place:
        if line > len(self.lines):  # the end of the file, after its last line break
            line, column = len(self.lines), len(self.lines[-1]) + 1
        return Place(self.name, line, column, width, self.lines[line - 1])
