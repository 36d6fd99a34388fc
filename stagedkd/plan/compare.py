"""What differs between two works, and which stages of one plan another plan would run anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from stagedkd.plan.graph import Plan
from stagedkd.plan.key import keyed_fields
from stagedkd.plan.work import Work


def changed_fields(old: Work, new: Work) -> list[str]:
    """The keyed fields in which two works differ, each as `field old -> new`."""
    before, after = fields_of(old), fields_of(new)
    names = [name for name in dict.fromkeys([*after, *before]) if before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names]


def fields_of(work: Work) -> dict[str, Any]:
    """The keyed fields of a work by dotted path, without those that are None."""
    return dict(_leaves(work))


def in_short(fields: list[str], inputs: list[str]) -> str:
    """The first two changed fields, or else the inputs that changed."""
    words = fields[:2] + ([f"and {len(fields) - 2} more"] if len(fields) > 2 else [])
    return ", ".join(words) or f"another {' and '.join(inputs)}"


@dataclass(frozen=True)
class StageChange:
    """A stage under two plans: the same, changed (and why), or in one of them alone."""

    name: str
    state: Literal["same", "changed", "gone", "new"]
    why: str = ""


def stage_changes(first: Plan, second: Plan) -> list[StageChange]:
    """Every stage of either plan, by name."""
    old, new = ({stage.name: stage for stage in plan.stages} for plan in (first, second))
    found: list[StageChange] = []
    for name in dict.fromkeys([*old, *new]):
        if name not in new or name not in old:
            found.append(StageChange(name, "gone" if name in old else "new"))
        elif old[name].identity == new[name].identity:
            found.append(StageChange(name, "same"))
        else:
            above, before = second.inputs(new[name]), first.inputs(old[name])
            inputs = [r for r, stage in above.items() if r not in before or before[r].identity != stage.identity]
            why = in_short(changed_fields(old[name].work, new[name].work), inputs)
            found.append(StageChange(name, "changed", why))
    return found


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Keyed leaves of a work with their dotted paths."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields if name in keyed_fields(type(value))}
    if isinstance(value, tuple):
        value = dict(enumerate(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, Mapping):
        for name, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(item, f"{path}.{name}" if path else str(name))  # pyright: ignore[reportUnknownArgumentType]
    elif value is not None:
        yield path, value
