"""Why a stage is a miss: what differs from the nearest artifact of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from stagedkd.plan.graph import Plan, Stage
from stagedkd.store.manifest import Manifest


def why_miss(plan: Plan, stage: Stage, stored: Iterable[Manifest]) -> str:
    """The keyed fields in which a stage differs from the stored artifact of its kind that it is nearest to, as
    `field old -> new`; else the inputs that changed; "nothing of its kind is stored" where there is none."""
    mine = dict(_leaves(stage.work))
    needs = {role: above.key for role, above in plan.inputs(stage).items()}
    found: list[tuple[int, str]] = []
    for manifest in stored:
        if manifest.kind != stage.work.kind:
            continue
        theirs = dict(_leaves(manifest.work))
        fields = [n for n in dict.fromkeys([*mine, *theirs]) if mine.get(n) != theirs.get(n)]
        inputs = [role for role, key in needs.items() if manifest.needs.get(role) != key]
        words = [f"{name} {theirs.get(name, 'absent')} -> {mine.get(name, 'absent')}" for name in fields[:2]]
        words += [f"and {len(fields) - 2} more"] if len(fields) > 2 else []
        said = ", ".join(words) or f"another {' and '.join(inputs)}"
        found.append((2 * len(fields) + len(inputs), said))
    return min(found)[1] if found else "nothing of its kind is stored"


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Keyed leaves of a work with their dotted paths."""
    if isinstance(value, BaseModel):
        unkeyed: frozenset[str] = getattr(type(value), "unkeyed", frozenset())
        value = {name: getattr(value, name) for name in type(value).model_fields if name not in unkeyed}
    if isinstance(value, tuple):
        value = dict(enumerate(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, Mapping):
        for name, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(item, f"{path}.{name}" if path else str(name))  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield path, value
