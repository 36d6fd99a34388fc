"""Make the JSON Schema for editors.

The schema is partial: only the fields that choose an arm are required, since a child sets only what it changes. It
knows what the language adds: `extends`, `recipe`, `grid`, `$delete`, `$replace`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from stagedkd.spec.describe import entries
from stagedkd.spec.fields import HIDDEN, TAGS
from stagedkd.spec.grid import VARIED
from stagedkd.spec.inherit import shipped_recipes
from stagedkd.spec.schema import Section, Spec
from stagedkd.spec.tune import RULES

Schema = dict[str, Any]

DIRECTIVE = r"^\$(delete|replace)$"
_LABEL = {"type": ["string", "number", "boolean", "null"]}
_ROWS = {"type": "array", "items": {"type": "object", "additionalProperties": _LABEL}}


def _repeats(what: str) -> Schema:
    counted = {"type": "integer", "minimum": 1}
    listed = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    return {"description": f"{what}: their number or a list.", "anyOf": [counted, listed]}


_GRID: Schema = {
    "type": "object",
    "additionalProperties": False,
    "description": "Every combination of the axes is a cell.",
    "properties": {
        "axes": {
            "type": "object",
            "description": "Paths of the spec, each with a list of values or a map of labelled values.",
            "additionalProperties": {"type": ["array", "object"], "minItems": 1, "minProperties": 1},
        },
        "seeds": _repeats("Seeds"),
        "folds": _repeats("Folds of the data that take turns, as `data.fold`"),
        "vary": {
            "description": "What a seed draws again; by default the student alone.",
            "type": "array",
            "minItems": 1,
            "items": {"enum": list(VARIED)},
        },
        "exclude": {"description": "Cells to leave out: every cell that matches a row.", **_ROWS},
        "include": {"description": "Further cells; each sets all axes.", **_ROWS},
    },
}

_VALUES = {"type": ["array", "object"], "minItems": 1, "minProperties": 1}
_TUNE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["values", "seeds"],
    "description": "Values that `stagedkd tune` tries on validation, and the seeds that it tries them on.",
    "properties": {
        "values": {
            "type": "object",
            "description": "Paths of the spec, each with a list of values or a map of labelled values.",
            "additionalProperties": _VALUES,
        },
        "seeds": {
            "description": "Tuning seeds, which the results never use.",
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 3,
        },
        "rule": {"description": "worst_seed: the value whose worst seed is best.", "enum": list(RULES)},
        "at": {
            "description": "Labels, as in compare: the settings with them are tuned, all others take their choices.",
            "type": ["string", "number", "boolean"],
        },
    },
}
_COMPARE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["baseline", "primary"],
    "description": "The one comparison of settings that the grid was made for; all others are exploratory.",
    "properties": {
        "baseline": {
            "description": "A setting: a label, or axis=label,... Labels of some axes: all settings that have them.",
            "type": ["string", "number", "boolean"],
        },
        "primary": {"description": "The setting that is compared with it.", "type": ["string", "number", "boolean"]},
    },
}


def json_schema() -> Schema:
    """Return the partial JSON Schema (draft 2020-12) of a spec file."""
    schema = Spec.model_json_schema()
    definitions: dict[str, Schema] = schema.pop("$defs")
    sections = {arm.__name__: arm for arm in _sections(Section) if arm.__name__ in definitions}
    for name, definition in definitions.items():
        _describe(definition, sections[name])
        _loosen(definition)
    _describe(schema, Spec)
    _loosen(schema)
    for part in (*definitions.values(), schema):
        _partial_unions(part, definitions)
    path = {"type": "string", "minLength": 1}
    paths = [path, {"type": "array", "items": path}]
    schema["properties"] |= {
        "extends": {"description": "Parents of this file, as paths relative to it.", "anyOf": paths},
        "recipe": {
            "description": f"A method: {', '.join(shipped_recipes())}, or the path of a file.",
            "type": ["string", "null"],
        },
        "grid": _GRID,
        "tune": _TUNE,
        "tuned": {"description": "The file that `stagedkd tune` wrote.", "type": ["string", "null"]},
        "compare": _COMPARE,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A spec of stagedkd",
        "description": "Partial: a child sets only what it changes. `stagedkd check` validates the whole spec.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
        "$defs": definitions,
    }


def _sections(base: type[Section]) -> list[type[Section]]:
    sections = [section for below in base.__subclasses__() for section in (below, *_sections(below))]
    return [section for section in sections if section.__module__.startswith("stagedkd.spec.schema.")]


def _describe(definition: Schema, section: type[Section]) -> None:
    """Put the docstrings of a section into its definition, and allow a bare number where the section does."""
    docs = {field.name: field.doc for field in entries(section)}
    for name in HIDDEN:
        definition.get("properties", {}).pop(name, None)
    for name, field in definition.get("properties", {}).items():
        field.pop("title", None)
        field.pop("default", None)
        if docs.get(name):
            field["description"] = docs[name]
    definition.pop("title", None)
    definition["description"] = " ".join((section.__doc__ or "").split())
    if section.bare:
        bare = dict(definition["properties"][section.bare])
        whole = {key: definition.pop(key) for key in list(definition)}
        definition |= {"description": whole.pop("description"), "anyOf": [bare, whole]}


def _maps(schema: Any) -> Iterator[Schema]:
    """Iterate over a schema and every map below it."""
    if isinstance(schema, list):
        for item in cast("list[Any]", schema):
            yield from _maps(item)
    if isinstance(schema, dict):
        mapping = cast("Schema", schema)
        yield mapping
        for value in list(mapping.values()):
            yield from _maps(value)


def _loosen(schema: Schema) -> None:
    """Require nothing but discriminators, and allow directives in every map."""
    for part in _maps(schema):
        if part.get("type") != "object":
            continue
        tags = [tag for tag in TAGS if tag in part.get("required", ())]
        part.pop("required", None)
        part.pop("minProperties", None)
        if tags:
            part["required"] = tags
        part["patternProperties"] = {**part.get("patternProperties", {}), DIRECTIVE: {}}
        if part.pop("propertyNames", None):
            part["additionalProperties"] = False  # the pattern of the keys is in patternProperties


def _partial_unions(schema: Schema, definitions: dict[str, Schema]) -> None:
    """Allow a map without a tag to have the fields of any arm, since its parent may have chosen the arm."""
    for part in _maps(schema):
        discriminator: Any = part.pop("discriminator", None)
        if not discriminator or "propertyName" not in discriminator:
            continue
        tag: str = discriminator["propertyName"]
        arms: list[Schema] = part.pop("oneOf")
        known: Schema = {}
        for arm in arms:
            fields: Schema = definitions[arm["$ref"].rsplit("/", 1)[-1]]["properties"]
            known |= {name: {"description": field.get("description", "")} for name, field in fields.items()}
        known.pop(tag)
        loose: Schema = {"type": "object", "not": {"required": [tag]}, "properties": known}
        loose |= {"patternProperties": {DIRECTIVE: {}}, "additionalProperties": False}
        part["anyOf"] = [*arms, loose]
