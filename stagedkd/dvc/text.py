"""Edit dvc.yaml and dvc.lock as text, so that everything a user wrote there keeps its form.

A stage of these files is *managed* if stagedkd wrote it; every other stage is the user's. The YAML is composed only to
learn the positions of the stages; then whole lines are removed and inserted. Only managed lines are ever moved,
re-quoted or re-indented. The anchors, templates and comments of the user's stages are not interpreted.
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

IN_BRACES = "`stages` is written in braces: write each stage on lines of its own"
MADE_BY = "stagedkd"
MARK = "# made by `stagedkd dvc sync`: edit the specs, not these; stages of your own are left alone"
HEADER = "# The pipeline of the specs that params.yaml names under `dvc`. DVC runs it: dvc repro\n"
MANAGED_NAME = re.compile(rf"({'|'.join(KINDS)})-{SHORT_FORM}\Z")
MANAGED_COMMAND = re.compile(rf"stagedkd stage {SHORT_FORM}\Z")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./]*([ -][A-Za-z0-9_./-]+)*\Z")


@dataclass(frozen=True)
class Entry:
    """A stage of dvc.yaml or dvc.lock. `first` and `last` are its first and last line, counted from 0. `made_by` is the
    value of that name in its `meta`; "" if there is none."""

    name: str
    command: str
    made_by: str
    outs: tuple[str, ...]
    first: int
    last: int

    @property
    def managed(self) -> bool:
        """Whether stagedkd wrote this stage: its `meta` says so, or both its name and its command have the form of a
        managed stage. The latter is needed for dvc.lock, which keeps no `meta`."""
        return self.made_by == MADE_BY or bool(MANAGED_NAME.match(self.name) and MANAGED_COMMAND.match(self.command))


@dataclass(frozen=True)
class Stages:
    """The map `stages` of a file: its entries in order, the column of their names (`indent`), the line of the key
    `stages` counted from 0, and whether the map is written in braces (`flow`)."""

    entries: tuple[Entry, ...]
    indent: int
    line: int
    flow: bool


def read_stages(text: str, file: str) -> Stages | None:
    """Read the stages of a dvc.yaml or dvc.lock. Returns None if it has no `stages`.

    Args:
        file: the file's name, for messages.
    Raises:
        StaleError: the text is not YAML, or not a map.
    """
    try:
        root = cast("yaml.Node | None", compose(text, Loader=LOADER))
    except (yaml.YAMLError, RecursionError) as error:
        raise _broken(file, str(error).splitlines()[0]) from None
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise _broken(file, "expected a map of sections")
    for key, value in _items(root):
        if key.value == "stages":
            if isinstance(value, yaml.MappingNode):
                entries = tuple(_entry(name, node) for name, node in _items(value))
                indent = value.start_mark.column if entries else 2
                return Stages(entries, indent, key.start_mark.line, bool(value.flow_style))
            return Stages((), 2, key.start_mark.line, False)
    return None


def made_for(text: str, name: str) -> tuple[str, str] | None:
    """A spec and a cell for which dvc.yaml has the managed stage of this name, without reading the other stages. None
    if there is no such stage, or if it is not written as `stagedkd dvc sync` writes it."""
    start = text.rfind("\n", 0, max(0, text.find(f" {name}:\n"))) + 1
    found = re.match(rf"( +){re.escape(name)}:\n(?:\1 .*\n)*?\1  meta: (\{{.*\}})\n", text[start : start + 10_000])
    if not found:
        return None
    meta = {key.value: value.value for key, value in _items(compose(found[2], Loader=LOADER))}
    if meta.get("made_by") != MADE_BY or not {"spec", "cell"} <= meta.keys():
        return None
    return str(meta["spec"]), str(meta["cell"])


def with_managed(text: str, render: Callable[[int], list[str]], names: Collection[str], file: str) -> str:
    """Replace all managed stages of `text`. The new ones begin where the first managed stage was, or else after the
    user's stages. Everything else keeps its bytes, except comments inside managed stages.

    Args:
        render: gives the lines of the new managed stages, indented by the number of columns that it is called with.
        names: of the new managed stages.
    Raises:
        StaleError: the text is not YAML, `stages` is written in braces, or a stage of the user has one of the names.
    """
    stages = read_stages(text, file)
    newline = "\r\n" if "\r\n" in text else "\n"
    if stages is None:
        existing = text if text.endswith(("\n", "\r")) or not text else text + newline
        return (existing or HEADER) + _joined(["stages:", *render(2)], newline)
    for entry in stages.entries:
        if not entry.managed and entry.name in names:
            problem = f"your stage '{entry.name}' has a name that stagedkd needs for a stage: rename yours"
            raise _broken(file, problem, entry.first)
    if stages.flow and stages.entries:
        raise _broken(file, IN_BRACES, stages.line)
    lines = text.splitlines(keepends=True)
    managed = [entry for entry in stages.entries if entry.managed]
    removed = {line for entry in managed for line in range(entry.first, entry.last + 1)}
    removed |= {i for i, line in enumerate(lines) if line.strip() == MARK}
    if not stages.entries:
        lines[stages.line] = "stages:" + newline  # it may have been `stages: {}`
    at = managed[0].first if managed else max((entry.last for entry in stages.entries), default=stages.line) + 1
    before, after = (
        "".join(line for i, line in enumerate(lines) if i not in removed and (i < at) == is_before)
        for is_before in (True, False)
    )
    before += "" if before.endswith(("\n", "\r")) else newline
    return before + _joined(render(stages.indent), newline) + after


def without(text: str, names: Collection[str], file: str) -> str:
    """`text` without the stages of these names."""
    stages = read_stages(text, file)
    dropped = [entry for entry in stages.entries if entry.name in names] if stages else []
    if stages is None or not dropped:
        return text
    if stages.flow:
        raise _broken(file, IN_BRACES, stages.line)
    removed = {line for entry in dropped for line in range(entry.first, entry.last + 1)}
    lines = text.splitlines(keepends=True)
    if len(dropped) == len(stages.entries):
        lines[stages.line] = "stages: {}\n"
    return "".join(line for i, line in enumerate(lines) if i not in removed)


def merged(lock: str, fresh: str) -> str:
    """The text of dvc.lock with all entries of `fresh`, the text of another one: in the place of the entry of the same
    name, or at the end. All other entries keep their bytes.

    Raises:
        StaleError: a text is not YAML, or `stages` is written in braces.
    """
    there, new = read_stages(lock, "dvc.lock"), read_stages(fresh, "dvc.lock")
    if new is None or not lock.strip():
        return fresh if new else lock
    source, lines = fresh.splitlines(), lock.splitlines(keepends=True)
    lines[-1] = lines[-1].removesuffix("\n") + "\n"
    if there is None:
        return "".join(lines) + _joined(source[new.line :], "\n")
    if there.flow and there.entries:
        raise _broken("dvc.lock", IN_BRACES, there.line)
    if not there.entries:
        lines[there.line] = "stages:\n"  # it may have been `stages: {}`
    margin = " " * there.indent
    texts = {
        entry.name: "".join(f"{margin}{line[new.indent :]}\n" for line in source[entry.first : entry.last + 1])
        for entry in new.entries
    }
    for entry in there.entries:
        if (text := texts.pop(entry.name, None)) is not None:
            lines[entry.first : entry.last + 1] = [text, *[""] * (entry.last - entry.first)]
    end = max((entry.last for entry in there.entries), default=there.line) + 1
    return "".join([*lines[:end], *texts.values(), *lines[end:]])


def quoted(text: str) -> str:
    """Write a string as a YAML scalar that PyYAML and ruamel both read as this string, with DVC's `${` escaped."""
    if (
        _PLAIN.match(text)
        and isinstance(scalar(text), str)
        and text.lower() not in ("y", "n", "yes", "no", "on", "off")
    ):
        return text
    return json.dumps(text.replace("${", "\\${"), ensure_ascii=False)


def _joined(lines: list[str], newline: str) -> str:
    return "".join(line + newline for line in lines)


def _broken(file: str, problem: str, line: int | None = None) -> StaleError:
    at = "" if line is None else f":{line + 1}"
    return StaleError(f"{file}{at}: {problem}", hint="correct the file, then run: stagedkd dvc sync")


def _items(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    return [(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]


def _entry(key: yaml.ScalarNode, node: yaml.Node) -> Entry:
    fields = {k.value: v for k, v in _items(node)} if isinstance(node, yaml.MappingNode) else {}
    meta = fields.get("meta")
    values = {k.value: v.value for k, v in _items(meta)} if isinstance(meta, yaml.MappingNode) else {}
    command = fields.get("cmd")
    outs = tuple(out for name in ("outs", "metrics", "plots") for out in _paths(fields.get(name)))
    return Entry(
        key.value,
        str(command.value) if isinstance(command, yaml.ScalarNode) else "",
        str(values.get("made_by", "")),
        outs,
        key.start_mark.line,
        max(key.start_mark.line, _last_line(node)),
    )


def _paths(node: yaml.Node | None) -> list[str]:
    """The paths of a list of outs. dvc.yaml writes `- path` or `- path: {...}`; dvc.lock writes `- path: PATH` beside
    other fields."""
    paths: list[str] = []
    for item in cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else ():
        if isinstance(item, yaml.ScalarNode):
            paths.append(item.value)
        elif isinstance(item, yaml.MappingNode):
            fields = {k.value: v for k, v in _items(item)}
            path = fields.get("path")
            paths += [path.value] if isinstance(path, yaml.ScalarNode) else list(fields)
    return paths


def _last_line(node: yaml.Node) -> int:
    """The last line of a value. The end mark of a block comes after the comments that follow it, so the line is taken
    from the last value inside the block."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in cast("list[tuple[yaml.Node, yaml.Node]]", node.value) for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = cast("list[yaml.Node]", node.value)
    if children and not cast("bool", getattr(node, "flow_style", False)):
        return max(_last_line(child) for child in children[-2:])
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line
