"""Content keys: SHA-256 over type-tagged canonical JSON, so that 1, 1.0, true and "1" never meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from stagedkd.plan.work import Work


def canonical(value: Any) -> Any:
    """A type-tagged JSON value. Models lose their `unkeyed` fields and those that are None, so that a new optional
    field changes no old key; maps are sorted, sequences keep their order.

    Raises:
        TypeError: a value of another type.
    """
    match value:
        case None:
            return ["null"]
        case bool():
            return ["bool", value]
        case int():
            return ["int", str(value)]
        case float():
            return ["float", value.hex()]
        case str():
            return ["str", value]
        case BaseModel():
            fields = ((name, getattr(value, name)) for name in keyed_fields(type(value)))
            return ["map", [[name, canonical(item)] for name, item in fields if item is not None]]
        case tuple() | list():
            return ["seq", [canonical(item) for item in value]]  # pyright: ignore[reportUnknownVariableType]
        case Mapping():
            return ["map", [[str(k), canonical(v)] for k, v in sorted(value.items())]]  # pyright: ignore
        case _:
            raise TypeError(f"{type(value).__name__} has no canonical form")


@cache
def keyed_fields(section: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a section that enter keys, sorted."""
    unkeyed: frozenset[str] = getattr(section, "unkeyed", frozenset())
    return tuple(sorted(set(section.model_fields) - unkeyed))


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, 64 hex digits."""
    text = json.dumps(canonical(value), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(work: Work, upstream: Mapping[str, str]) -> str:
    """Key of a stage from its work and the keys of its inputs by their names."""
    return digest([work.kind, work.version, work, dict(upstream)])
