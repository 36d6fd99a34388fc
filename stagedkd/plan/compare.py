"""Compare two works field by field, and two plans stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from stagedkd.plan.graph import Plan
from stagedkd.plan.key import keyed_fields
from stagedkd.plan.work import Work


def changed_fields(old: Work, new: Work) -> list[str]:
    """The keyed fields in which two works differ, each as `field old -> new`; a field that one lacks is "absent"."""
    before, after = fields_of(old), fields_of(new)
    names = [name for name in dict.fromkeys([*after, *before]) if before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names]


def fields_of(work: Work) -> dict[str, Any]:
    """The keyed fields of a work, by dotted path. Fields that are None are left out."""
    return dict(_leaves(work))


def in_short(fields: list[str], inputs: list[str]) -> str:
    """Describe a change by its first two fields, or by the inputs that changed if no field did."""
    words = fields[:2] + ([f"and {len(fields) - 2} more"] if len(fields) > 2 else [])
    return ", ".join(words) or f"another {' and '.join(inputs)}"


@dataclass(frozen=True)
class StageChange:
    """How a stage differs between two plans. `why` says what changed; "gone" and "new" mean that only the first or only
    the second plan has it."""

    name: str
    state: Literal["same", "changed", "gone", "new"]
    why: str = ""


def stage_changes(first: Plan, second: Plan) -> list[StageChange]:
    """Compare every stage that either plan has, by name."""
    old, new = ({stage.name: stage for stage in plan.stages} for plan in (first, second))
    changes: list[StageChange] = []
    for name in dict.fromkeys([*old, *new]):
        if name not in new or name not in old:
            changes.append(StageChange(name, "gone" if name in old else "new"))
        elif old[name].identity == new[name].identity:
            changes.append(StageChange(name, "same"))
        else:
            after, before = second.inputs(new[name]), first.inputs(old[name])
            inputs = [i for i, stage in after.items() if i not in before or before[i].identity != stage.identity]
            why = in_short(changed_fields(old[name].work, new[name].work), inputs)
            changes.append(StageChange(name, "changed", why))
    return changes


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the keyed leaves of a work with their dotted paths. A list of numbers, such as a size, is one leaf."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields if name in keyed_fields(type(value))}
    if value and isinstance(value, tuple) and all(isinstance(item, int) for item in value):  # pyright: ignore[reportUnknownVariableType]
        value = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, tuple):
        value = dict(enumerate(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, Mapping):
        for name, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(item, f"{path}.{name}" if path else str(name))  # pyright: ignore[reportUnknownArgumentType]
    elif value is not None:
        yield path, value
