"""Describe the fields of the sections (type, default, range and docstring) for `explain` and docs/spec.md."""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stagedkd.spec.fields import HIDDEN, TAGS, arms_of, is_section, tag_values
from stagedkd.spec.problems import limits_of, range_of
from stagedkd.spec.schema import Section, Spec, Train, TrainPatch


@dataclass(frozen=True)
class Entry:
    """One field of a section.

    `type` and `range` are in words, `range` may be "". `default` is as a user would write it, "" for a required field.
    `doc` is the docstring on one line, `place` the file and line of the declaration.
    """

    name: str
    type: str
    default: str
    range: str
    doc: str
    place: str


def entries(section: type[Section]) -> tuple[Entry, ...]:
    """Return the fields of a section in order, tags first."""
    names = [name for name in section.model_fields if name not in HIDDEN]
    return tuple(entry(section, name) for name in sorted(names, key=lambda name: name not in TAGS))


def entry(section: type[Section], name: str) -> Entry:
    """Return one field of a section."""
    field = section.model_fields[name]
    doc, place = _declaration(section, name)
    limits = limits_of(field.metadata, field.annotation)
    default = "the file's name" if section is Spec and name == "name" else _default(field)
    return Entry(name, type_of(field.annotation), default, range_of(limits), doc, place)


def written(value: Any) -> str:
    """Return a value as a user would write it in a spec, on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Section):
        value = value.model_dump(exclude_none=True, exclude_defaults=True)
    if isinstance(value, Mapping):
        items = typing.cast("Mapping[str, Any]", value).items()
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in items) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(written(item) for item in typing.cast("tuple[Any, ...]", value)) + "]"
    return str(value)


def type_of(annotation: Any) -> str:
    """Return an annotation in words: `number`, `list of words`, `auto or list of ...`, a section's name."""
    return " or ".join(dict.fromkeys(_words(arm) for arm in arms_of(annotation)))


def _words(arm: Any) -> str:
    if is_section(arm):
        tags = [value for tag in TAGS for value in tag_values(arm, tag)]
        return ", ".join(map(str, tags)) if tags and not arm.mark else arm.__name__
    origin, args = typing.get_origin(arm), typing.get_args(arm)
    if origin is typing.Literal:
        return " or ".join(", ".join(map(str, args)).rsplit(", ", 1))
    if origin is tuple:
        return f"list of {_plural(type_of(args[0]))}"
    if origin is not None:
        return f"map to {type_of(args[-1])}"
    return {int: "whole number", float: "number", str: "word", bool: "true or false"}.get(arm, "any value")


def _plural(word: str) -> str:
    plurals = {"word": "words", "number": "numbers", "whole number": "whole numbers", "list of words": "lists of words"}
    return plurals.get(word, word)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "{}"
    if field.default is PydanticUndefined:
        return ""
    return "unset" if field.default is None else written(field.default)


def _declaration(section: type[Section], name: str) -> tuple[str, str]:
    """Return docstring and place of a field from the class that declares it; those of TrainPatch come from Train."""
    for owner in (*section.__mro__, *((Train,) if section is TrainPatch else ())):
        doc, place = _docstrings(owner.__module__).get((owner.__name__, name), ("", ""))
        if doc:
            return doc, place
    return "", ""


@cache
def _docstrings(module: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return docstring and place of each (class, field) of a module, read from its source.

    pydantic could do it, too, but would do it at every import.
    """
    if not module.startswith("stagedkd."):
        return {}
    docs: dict[tuple[str, str], tuple[str, str]] = {}
    source = inspect.getsource(sys.modules[module])
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value.value if isinstance(below.value, ast.Constant) else ""
                if isinstance(text, str):
                    place = f"{module.replace('.', '/')}.py:{field.lineno}"
                    docs[node.name, field.target.id] = (" ".join(text.split()), place)
    return docs
