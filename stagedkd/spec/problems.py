"""pydantic's errors as problems with a place, the allowed values, and what was probably meant."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stagedkd.errors import Place, Problem
from stagedkd.spec.fields import TAGS, chosen, field_names, is_section, nearest, slot_at, tag_values, without_union_tags
from stagedkd.spec.schema import Section, Spec
from stagedkd.spec.yaml import Node, Path_

FORMS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a word",
    "tuple_type": "a list",
    "dict_type": "a map",
    "mapping_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "finite_number": "a finite number",
    "bool_type": "true or false",
}
MOST = 100  # errors shown of one spec: who made more will not read them
LIMITS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


def problems_of(error: ValidationError, tree: Node, root: type[Section] = Spec) -> list[Problem]:
    """All that pydantic says of a spec, or of a file whose section is `root`, less what is said twice: a key that is
    missing because it was misspelt, a list that is empty because its items are wrong."""
    every = error.errors(include_url=False)
    inside = {d["loc"][:n] for d in every for n in range(len(d["loc"]))}
    details = [d for d in every if d["type"] != "too_short" or d["loc"] not in inside][:MOST]
    rows = [(d["type"], without_union_tags(d["loc"], root), problem_of(d, tree, root)) for d in details]
    meant = {(path[:-1], problem.hint) for kind, path, problem in rows if kind == "extra_forbidden"}
    return [
        problem
        for kind, path, problem in rows
        if kind != "missing" or not path or (path[:-1], f"did you mean '{path[-1]}'?") not in meant
    ]


def problem_of(detail: ErrorDetails, tree: Node, root: type[Section] = Spec) -> Problem:
    """One of pydantic's errors at its place in `tree`."""
    path = without_union_tags(detail["loc"], root)
    above = tree.at(path[:-1])
    if above is not None and not isinstance(above.value, dict | tuple) and len(path) > 1:
        path = path[:-1]  # a bare number stands for the field
    name = ".".join(map(str, path)) or "the spec"
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return at(tree, path, f"unknown key '{name}'", _known_beside(path, tree, root), key=True)
    if kind == "missing" and path:
        words = [str(word) for word in _literals(path, root)]
        return at(tree, path, f"'{name}' is missing", f"add {path[-1]}: {' or '.join(words) or '...'}", key=True)
    if kind == "union_tag_not_found":
        tag = str(context["discriminator"]).strip("'")
        return at(tree, path, f"'{name}' needs '{tag}'", f"one of {', '.join(_tags(path, tag, root))}", key=True)
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        said = tree.at((*path, tag))
        message = f"'{name}.{tag}' cannot be {_shown(said.plain() if said else context['tag'])}"
        return at(tree, (*path, tag), message, nearest(context["tag"], _tags(path, tag, root)))
    if kind == "value_error":
        return at(tree, path, f"'{name}': {context['error']}", "", key=not isinstance(path[-1], str) if path else True)
    if detail["loc"][-1:] == ("[key]",):
        return at(tree, path, f"'{name}' cannot be a name", "letters, digits, _ and -", key=True)
    message, hint = _wrong_value(detail, path, root)
    return at(tree, path, f"'{name}' {message}", hint)


def at(tree: Node, path: Path_, message: str, hint: str, *, key: bool = False) -> Problem:
    """A problem at a path, with the places of the values that the faulty one stands over."""
    node, exact = tree.nearest(path)
    related: list[tuple[str, Place]] = []
    over = node.over if exact else None
    while over is not None:
        related.append((f"overrides {_shown(over.plain())} at", over.place))
        over = over.over
    return Problem(message, tree.where(path, key=key), hint, tuple(related))


def _wrong_value(detail: ErrorDetails, path: Path_, root: type[Section]) -> tuple[str, str]:
    kind, context, got, allowed = detail["type"], detail.get("ctx", {}), detail["input"], _range(path, root)
    if kind == "literal_error":
        known = _literals(path, root)
        words = ", ".join(map(str, known))
        return f"must be {' or '.join(words.rsplit(', ', 1))}, not {_shown(got)}", _close(got, known)
    if kind in FORMS:
        form = (
            "a number or a map"
            if any(is_section(arm) and arm.bare for arm in slot_at(path, root=root))
            else FORMS[kind]
        )
        return f"must be {form}, not {_shown(got)}", _as_number(got, kind) or _for_example(path, root) or allowed
    if kind in LIMITS:
        return f"must be {LIMITS[kind]} {_limit(next(iter(context.values())))}, not {_shown(got)}", allowed
    if kind == "form":
        return f"{detail['msg']}, not {_shown(got)}", ""
    if kind in ("too_short", "string_too_short"):
        least = int(context["min_length"])
        return "must not be empty" if least == 1 else f"needs at least {least} items", ""
    if kind in ("too_long", "string_too_long"):
        return f"is too long: at most {context['max_length']}", ""
    if kind == "multiple_of":
        return f"must be a multiple of {context['multiple_of']}, not {_shown(got)}", allowed
    if kind == "string_pattern_mismatch":
        return f"cannot be {_shown(got)}", "letters, digits and _ . = , + -"
    return f"is wrong: {kind.replace('_', ' ')}, {_shown(got)}", allowed


def _shown(value: Any) -> str:
    """A value as it would be written, cut short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _literals(path: Path_, root: type[Section]) -> list[Any]:
    """The words that a field may say, where it may say nothing else."""
    literals = [arm for arm in slot_at(path, root=root) if typing.get_origin(arm) is typing.Literal]
    return [word for arm in literals for word in typing.get_args(arm)]


def _for_example(path: Path_, root: type[Section]) -> str:
    """How a map is begun that chooses its arm by a tag."""
    for tag in TAGS:
        if words := _tags(path, tag, root):
            return f"for example {{{tag}: {words[0]}, ...}}"
    return ""


def _close(got: Any, known: list[Any]) -> str:
    hint = nearest(got, map(str, known))
    return hint if hint.startswith("did you") else ""


def _as_number(got: Any, kind: str) -> str:
    """What a word that looks like a number in other languages would be here."""
    if not isinstance(got, str) or kind not in ("int_type", "float_type"):
        return ""
    plain = got.replace("_", "").replace(",", "") if kind == "int_type" else got.replace("_", "").replace(",", ".")
    try:
        float(plain)
    except ValueError:
        return ""
    return f"write {plain}, without quotes" if len(plain) < 40 else ""


def _known_beside(path: Path_, tree: Node, root: type[Section]) -> str:
    """The keys that the section above a wrong one knows, in the arm that its tag chooses."""
    if path[-1] == "<<":
        return "use extends"
    if str(path[-1]).startswith("$"):
        return "a directive stands alone, below the key that it is about"
    slot = chosen(slot_at(path[:-1], tree, root), tree.at(path[:-1]))
    known = (*field_names(slot), *(("extends", "recipe", "grid") if len(path) == 1 and root is Spec else ()))
    return nearest(path[-1], known, "known here:")


def _tags(path: Path_, tag: str, root: type[Section]) -> list[str]:
    return [str(value) for arm in slot_at(path, root=root) if is_section(arm) for value in tag_values(arm, tag)]


def _range(path: Path_, root: type[Section]) -> str:
    """The allowed range of a number, in words: `1 to 512`, `above 0, below 100`."""
    return f"allowed: {found}" if (found := range_of(constraints(path, root))) else ""


def range_of(limits: list[Any]) -> str:
    """A range from annotated limits."""
    low = next((m for m in limits if isinstance(m, Ge | Gt)), None)
    high = next((m for m in limits if isinstance(m, Le | Lt)), None)
    if isinstance(low, Ge) and isinstance(high, Le):
        return f"{_limit(low.ge)} to {_limit(high.le)}"
    words = [f"at least {_limit(low.ge)}" if isinstance(low, Ge) else f"above {_limit(low.gt)}" if low else ""]
    words.append(f"at most {_limit(high.le)}" if isinstance(high, Le) else f"below {_limit(high.lt)}" if high else "")
    return ", ".join(word for word in words if word)


def _limit(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def constraints(path: Path_, root: type[Section] = Spec) -> list[Any]:
    """The limits of the field at a path: of its own annotation, of a list's items, of optional values."""
    end = len(path)
    while end and isinstance(path[end - 1], int):
        end -= 1
    for arm in slot_at(path[: end - 1], root=root) if end else ():
        field = arm.model_fields.get(str(path[end - 1])) if is_section(arm) else None
        if field is not None:
            metadata, annotation = list(field.metadata), field.annotation
            for _ in path[end:]:
                metadata, annotation = _item(annotation)
            return limits_of(metadata, annotation)
    return []


def limits_of(metadata: Sequence[Any], annotation: Any) -> list[Any]:
    """The limits of a field, those inside optional values included."""
    return [*metadata, *_nested(annotation)]


def _nested(annotation: Any) -> list[Any]:
    found: list[Any] = list(getattr(annotation, "__metadata__", ()))
    if typing.get_origin(annotation) not in (tuple, typing.Literal):
        for arg in typing.get_args(annotation):
            found += _nested(arg)
    return [m for item in found for m in (getattr(item, "metadata", None) or [item])]


def _item(annotation: Any) -> tuple[list[Any], Any]:
    for arm in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(arm) is typing.Annotated:
            arm = typing.get_args(arm)[0]
        if typing.get_origin(arm) is tuple:
            return _nested(typing.get_args(arm)[0]), typing.get_args(arm)[0]
    return [], Any
