"""Reading and cutting dvc.yaml and dvc.lock as text, so that what a user wrote there stays as it stands.

The YAML is composed for its positions alone; lines are taken out and put in. Nothing but our own lines is moved,
re-quoted or re-indented, and anchors, templates and comments of the user's stages are left to DVC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import yaml

from stagedkd.errors import StaleError
from stagedkd.plan.key import SHORT_FORM
from stagedkd.plan.work import KINDS
from stagedkd.spec.yaml import LOADER, compose, scalar

MADE_BY = "stagedkd"
MARK = "# made by `stagedkd dvc sync`: edit the specs, not these; stages of your own are left alone"
HEADER = "# The pipeline of the specs that params.yaml names under `dvc`. DVC runs it: dvc repro\n"
OWN_NAME = re.compile(rf"({'|'.join(KINDS)})-{SHORT_FORM}\Z")
OWN_COMMAND = re.compile(rf"stagedkd stage {SHORT_FORM}\Z")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./]*([ -][A-Za-z0-9_./-]+)*\Z")


@dataclass(frozen=True)
class Entry:
    """A stage of dvc.yaml or dvc.lock. `first` and `last` are its lines, from 0; `made_by` is of its `meta`."""

    name: str
    command: str
    made_by: str
    outs: tuple[str, ...]
    first: int
    last: int

    @property
    def own(self) -> bool:
        """Whether it is ours: it says so, or is called and calls as ours do (dvc.lock keeps no `meta`)."""
        return self.made_by == MADE_BY or bool(OWN_NAME.match(self.name) and OWN_COMMAND.match(self.command))


@dataclass(frozen=True)
class Stages:
    """The map `stages` of a file: its entries in order, the column of their names, and the line of the key itself."""

    entries: tuple[Entry, ...]
    indent: int
    line: int
    flow: bool


def read_stages(text: str, file: str) -> Stages | None:
    """The stages of a dvc.yaml or dvc.lock; None where it has no `stages`.

    Raises:
        StaleError: it is not YAML.
    """
    try:
        root = cast("yaml.Node | None", compose(text, Loader=LOADER))
    except (yaml.YAMLError, RecursionError) as error:
        raise _broken(file, str(error).splitlines()[0]) from None
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise _broken(file, "a map of sections is expected")
    for key, value in _items(root):
        if key.value == "stages":
            if isinstance(value, yaml.MappingNode):
                entries = tuple(_entry(name, node) for name, node in _items(value))
                indent = value.start_mark.column if entries else 2
                return Stages(entries, indent, key.start_mark.line, bool(value.flow_style))
            return Stages((), 2, key.start_mark.line, False)
    return None


def with_own(text: str, render: Callable[[int], list[str]], taken: Collection[str], file: str) -> str:
    """`text` with our stages as `render(indent)` gives them, in place of those of ours that it has; at the place of the
    first of them, else behind the user's. What else stands there is kept to the byte, but comments inside our stages.

    Raises:
        StaleError: it is not YAML, `stages` stands in braces, or a stage of the user's has one of the names `taken`.
    """
    stages = read_stages(text, file)
    newline = "\r\n" if "\r\n" in text else "\n"
    if stages is None:
        head = text if text.endswith(("\n", "\r")) or not text else text + newline
        return (head or HEADER) + _joined(["stages:", *render(2)], newline)
    for entry in stages.entries:
        if not entry.own and entry.name in taken:
            raise _broken(file, f"it has a stage '{entry.name}' of yours: rename it, the name is taken", entry.first)
    if stages.flow and stages.entries:
        raise _broken(file, "`stages` stands in braces: write a stage on lines of its own", stages.line)
    lines = text.splitlines(keepends=True)
    own = [entry for entry in stages.entries if entry.own]
    gone = {line for entry in own for line in range(entry.first, entry.last + 1)}
    gone |= {i for i, line in enumerate(lines) if line.strip() == MARK}
    if not stages.entries:
        lines[stages.line] = "stages:" + newline  # it may have been `stages: {}`
    at = own[0].first if own else max((entry.last for entry in stages.entries), default=stages.line) + 1
    before, after = (
        "".join(line for i, line in enumerate(lines) if i not in gone and (i < at) == first) for first in (True, False)
    )
    before += "" if before.endswith(("\n", "\r")) else newline
    return before + _joined(render(stages.indent), newline) + after


def without(text: str, names: Collection[str], file: str) -> str:
    """`text` without the stages of these names."""
    stages = read_stages(text, file)
    cut = [entry for entry in stages.entries if entry.name in names] if stages else []
    if stages is None or not cut:
        return text
    if stages.flow:
        raise _broken(file, "`stages` stands in braces: write a stage on lines of its own", stages.line)
    gone = {line for entry in cut for line in range(entry.first, entry.last + 1)}
    lines = text.splitlines(keepends=True)
    if len(cut) == len(stages.entries):
        lines[stages.line] = "stages: {}\n"
    return "".join(line for i, line in enumerate(lines) if i not in gone)


def quoted(text: str) -> str:
    """A YAML scalar that PyYAML and ruamel both read as this string, with DVC's `${` escaped."""
    if (
        _PLAIN.match(text)
        and isinstance(scalar(text), str)
        and text.lower() not in ("y", "n", "yes", "no", "on", "off")
    ):
        return text
    return json.dumps(text.replace("${", "\\${"), ensure_ascii=False)


def _joined(lines: list[str], newline: str) -> str:
    return "".join(line + newline for line in lines)


def _broken(file: str, fault: str, line: int | None = None) -> StaleError:
    at = "" if line is None else f":{line + 1}"
    return StaleError(f"{file}{at}: {fault}", hint="mend it, then: stagedkd dvc sync")


def _items(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    return [(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]


def _entry(key: yaml.ScalarNode, node: yaml.Node) -> Entry:
    fields = {k.value: v for k, v in _items(node)} if isinstance(node, yaml.MappingNode) else {}
    meta = fields.get("meta")
    said = {k.value: v.value for k, v in _items(meta)} if isinstance(meta, yaml.MappingNode) else {}
    command = fields.get("cmd")
    outs = tuple(out for name in ("outs", "metrics", "plots") for out in _paths(fields.get(name)))
    return Entry(
        key.value,
        str(command.value) if isinstance(command, yaml.ScalarNode) else "",
        str(said.get("made_by", "")),
        outs,
        key.start_mark.line,
        max(key.start_mark.line, _last_line(node)),
    )


def _paths(node: yaml.Node | None) -> list[str]:
    """The paths of outs: `- path`, `- path: {...}` in dvc.yaml, `- path: PATH` beside other fields in dvc.lock."""
    found: list[str] = []
    for item in cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else ():
        if isinstance(item, yaml.ScalarNode):
            found.append(item.value)
        elif isinstance(item, yaml.MappingNode):
            fields = {k.value: v for k, v in _items(item)}
            path = fields.get("path")
            found += [path.value] if isinstance(path, yaml.ScalarNode) else list(fields)
    return found


def _last_line(node: yaml.Node) -> int:
    """The last line of a value. A block's own end mark stands behind the comments that follow it, so the last value
    inside is asked."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in cast("list[tuple[yaml.Node, yaml.Node]]", node.value) for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = cast("list[yaml.Node]", node.value)
    if children and not cast("bool", getattr(node, "flow_style", False)):
        return max(_last_line(child) for child in children[-2:])
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line
