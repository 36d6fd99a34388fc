"""Content keys: SHA-256 over type-tagged canonical JSON, so that 1, 1.0, true and "1" never meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from stagedkd.plan.work import KIND_FORM, Work

SHORT = 12  # digits of a key in the names of folders, and where people read it
SHORT_FORM, WHOLE_FORM = rf"[0-9a-f]{{{SHORT}}}", r"[0-9a-f]{64}"
FOLDER_FORM = rf"{KIND_FORM}-{SHORT_FORM}"  # of kinds that this version does not know, too


class Key(str):
    """The key of a stage: 64 hex digits, SHA-256 over its work and the keys of its inputs. Equal to its plain string,
    in dicts and in JSON, too. Where only a part of it is known, `Key` holds that part."""

    __slots__ = ()

    @property
    def short(self) -> str:
        """The first 12 digits, by which people and folders name the stage."""
        return str(self[:SHORT])

    def folder(self, kind: str) -> str:
        """`<kind>-<key12>`, as the artifact's folder and the stage of DVC are called."""
        return f"{kind}-{self.short}"

    def is_meant(self, text: str, kind: str) -> bool:
        """Whether a user who types `text` (see `parse`) may mean the stage of this key and kind."""
        wanted, prefix = Key.parse(text)
        return self.startswith(prefix) and wanted in ("", kind)

    @staticmethod
    def parse(text: str) -> tuple[str, str]:
        """What users type, and names of folders: `<prefix of a key>` or `<kind>-<prefix>`.

        Returns:
            the kind, "" where none is named, and the prefix with all that follows it.
        """
        kind, dash, prefix = text.partition("-")
        return (kind, prefix) if dash else ("", text)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


NO_KEY = Key("")  # where no key is known


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


def stage_key(work: Work, upstream: Mapping[str, str]) -> Key:
    """Key of a stage from its work and the keys of its inputs by their names."""
    return Key(digest([work.kind, work.version, work, dict(upstream)]))
