"""Content keys: SHA-256 over canonical JSON with type tags, so that 1, 1.0, true and "1" have different keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from stagedkd.plan.kind import KIND_FORM
from stagedkd.plan.work import Work

SHORT = 12  # digits of a key in the names of folders and in messages
SHORT_FORM, WHOLE_FORM = rf"[0-9a-f]{{{SHORT}}}", r"[0-9a-f]{64}"
FOLDER_FORM = rf"{KIND_FORM}-{SHORT_FORM}"  # also matches kinds that this version does not know


class Key(str):
    """The key of a stage: 64 hex digits, the SHA-256 over its work and the keys of its inputs. A `Key` equals its plain
    string, also in dicts and in JSON. If only the first digits are known, it holds these."""

    __slots__ = ()

    @property
    def short(self) -> str:
        """The first 12 digits, which name the stage in folders and in messages."""
        return str(self[:SHORT])

    def folder(self, kind: str) -> str:
        """The name of the artifact's folder and of the DVC stage: `<kind>-<key12>`."""
        return f"{kind}-{self.short}"

    def is_meant(self, text: str, kind: str) -> bool:
        """Whether `text`, which a user typed (see `parse`), may mean the stage with this key and kind."""
        wanted, prefix = Key.parse(text)
        return self.startswith(prefix) and wanted in ("", kind)

    @staticmethod
    def parse(text: str) -> tuple[str, str]:
        """Split what users type and the names of folders: `<prefix of a key>` or `<kind>-<prefix>`.

        Returns:
            the kind ("" if none is named), and the prefix with everything that follows it.
        """
        kind, dash, prefix = text.partition("-")
        return (kind, prefix) if dash else ("", text)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


NO_KEY = Key("")  # the key is unknown


def canonical(value: Any) -> Any:
    """Convert a value to JSON with type tags. Maps are sorted; sequences keep their order. Models lose their `unkeyed`
    fields and the fields that are None, so that a new optional field changes no existing key.

    Raises:
        TypeError: the value has a type that has no canonical form.
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
    """The SHA-256 of a value's canonical JSON, 64 hex digits."""
    text = json.dumps(canonical(value), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(work: Work, upstream: Mapping[str, str]) -> Key:
    """The key of a stage, from its work and from the keys of its inputs (`upstream`, by the names of the inputs)."""
    return Key(digest([work.kind, work.version, work, dict(upstream)]))
