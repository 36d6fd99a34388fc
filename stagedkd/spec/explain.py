"""Find where each value of a resolved spec comes from and what it overrides, and how two specs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from stagedkd.errors import Place, UsageError
from stagedkd.spec.cuts import student_cut
from stagedkd.spec.describe import entry, written
from stagedkd.spec.fields import HIDDEN, nearest
from stagedkd.spec.load import Cell
from stagedkd.spec.schedule import phase_epochs
from stagedkd.spec.schema import Losses, Section, Spec, TrainPatch
from stagedkd.spec.yaml import Node, Path_


@dataclass(frozen=True)
class Explained:
    """One resolved value of a spec.

    `place` is where it is written, None for a default. `over` are the values that it overrides, nearest first.
    `section` declares its field and is None inside maps and lists.
    """

    path: Path_
    value: Any
    place: Place | None
    over: tuple[tuple[Any, Place], ...] = ()
    section: type[Section] | None = None

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def source(self) -> str:
        """The place as file:line:column, `--set`, or what gave the default."""
        if self.place is not None:
            return "--set" if self.place.file == "--set" else str(self.place)
        return "the file's name" if self.path == ("name",) else "default"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        over = [{"value": written(value), **place.as_json()} for value, place in self.over]
        values = {"path": self.name, "value": written(self.value), "source": self.source, "overrides": over}
        return values | (self.place.as_json() if self.place else {})


def explain(cell: Cell, tree: Node, under: str = "") -> list[Explained]:
    """Return every resolved value of a spec, or those at and below the path `under`.

    Raises:
        UsageError: the path does not exist.
    """
    rows = [row for row in _section(cell.spec, tree, ()) if row.path != ("name",) or tree.below("name")]
    rows = [_with_epochs(row, cell.spec, tree) for row in rows]
    if not any(row.path == ("name",) for row in rows):
        rows.append(Explained(("name",), cell.spec.name, None, (), type(cell.spec)))
    prefix = tuple(under.split(".")) if under else ()
    selected = [row for row in rows if tuple(map(str, row.path[: len(prefix)])) == prefix]
    if not selected:
        ends = ((row, end) for row in rows for end in range(1, len(row.path) + 1))
        hint = nearest(under, dict.fromkeys(".".join(map(str, row.path[:end])) for row, end in ends))
        if not hint.startswith("did"):
            hint = f"known keys: {', '.join(dict.fromkeys(str(row.path[0]) for row in rows))}"
        raise UsageError(f"there is no '{under}' in this spec", hint=hint)
    return selected


def _with_epochs(row: Explained, spec: Spec, tree: Node) -> Explained:
    """Fill in the epochs of a phase that leaves them out: one number, or a list if its substages have unequal numbers
    of epochs. Their place is `student.epochs`, from which they follow."""
    if row.value is not None or row.path[:2] != ("distill", "phases") or row.path[3:] != ("epochs",):
        return row
    epochs = phase_epochs(spec.distill.phases, spec.student.epochs, len(student_cut(spec.student)))[str(row.path[2])]
    value = epochs if len(set(epochs)) > 1 else epochs[0]
    return replace(row, value=value, place=tree.where(("student", "epochs")))


def _section(section: Section, node: Node | None, path: Path_) -> Iterator[Explained]:
    sparse = isinstance(section, TrainPatch | Losses)
    for name in type(section).model_fields:
        value = getattr(section, name)
        below = node.below(name) if node is not None else None
        if name in HIDDEN or (sparse and value is None and below is None):
            continue
        if node is not None and name == section.bare and not isinstance(node.value, Mapping):
            below = node  # a bare number is the value of this field
        yield from _value(value, below, (*path, name), type(section))


def _value(value: Any, node: Node | None, path: Path_, owner: type[Section] | None) -> Iterator[Explained]:
    if isinstance(value, Section):
        yield from _section(value, node, path)
    elif isinstance(value, Mapping) and value:
        for name, item in cast("Mapping[str, Any]", value).items():
            yield from _value(item, node.below(name) if node else None, (*path, name), None)
    elif isinstance(value, tuple) and any(isinstance(item, Section) for item in cast("tuple[Any, ...]", value)):
        for i, item in enumerate(cast("tuple[Any, ...]", value)):
            yield from _value(item, node.below(i) if node else None, (*path, i), None)
    else:
        yield Explained(path, value, node.place if node else None, tuple(_overridden(node)), owner)


def _overridden(node: Node | None) -> Iterator[tuple[Any, Place]]:
    below = node.over if node is not None else None
    while below is not None:
        yield below.plain(), below.place
        below = below.over


def documented(row: Explained) -> str:
    """Return meaning, type, range and default of a value's field in one line; "" inside maps and lists."""
    if row.section is None:
        return ""
    field = entry(row.section, str(row.path[-1]))
    facts = [field.type, field.range, f"default {field.default}" if field.default else "required"]
    return f"{field.doc} ({'; '.join(fact for fact in facts if fact)})"


@dataclass(frozen=True)
class Difference:
    """A value in which two specs differ. `first` or `second` is None if that spec has no such value."""

    name: str
    first: Explained | None
    second: Explained | None


def differences(first: list[Explained], second: list[Explained]) -> list[Difference]:
    """Return the values in which two explained specs differ, in the order of the first."""
    left, right = ({row.name: row for row in rows if row.path != ("name",)} for rows in (first, second))
    different: list[Difference] = []
    for name in dict.fromkeys([*left, *right]):
        a, b = left.get(name), right.get(name)
        if a is None or b is None or a.value != b.value or type(a.value) is not type(b.value):
            different.append(Difference(name, a, b))
    return different
