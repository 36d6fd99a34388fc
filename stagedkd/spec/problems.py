"""Problems at a path of a spec. pydantic's errors become such problems, with the allowed values and a guess at what was
meant."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stagedkd.errors import Place, Problem
from stagedkd.spec.fields import (
    TAGS,
    arms_of,
    chosen,
    field_names,
    is_section,
    nearest,
    slot_at,
    tag_values,
    without_union_tags,
)
from stagedkd.spec.inherit import FILE_KEYS
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
MOST = 100  # errors shown of one spec: nobody reads more
LIMITS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


class PathProblem(NamedTuple):
    """A problem at a path of a spec that has no place in a file yet; see `problem_at`."""

    message: str
    path: Path_
    hint: str


def problems_of(error: ValidationError, tree: Node, root: type[Section] = Spec) -> list[Problem]:
    """Convert pydantic's errors of a spec, or of a file whose section is `root`, to problems with places in `tree`.

    Errors that only follow from another one are left out: a key that is missing because it is misspelt, and a list that
    is too short because its items are wrong.
    """
    errors = error.errors(include_url=False)
    inside = {d["loc"][:n] for d in errors for n in range(len(d["loc"]))}
    details = [d for d in errors if d["type"] != "too_short" or d["loc"] not in inside][:MOST]
    rows = [(d["type"], without_union_tags(d["loc"], root), problem_of(d, tree, root)) for d in details]
    corrections = {(path[:-1], problem.hint) for kind, path, problem in rows if kind == "extra_forbidden"}
    return [
        problem
        for kind, path, problem in rows
        if kind != "missing" or not path or (path[:-1], f"did you mean '{path[-1]}'?") not in corrections
    ]


def problem_of(detail: ErrorDetails, tree: Node, root: type[Section] = Spec) -> Problem:
    """Convert one of pydantic's errors to a problem at its place in `tree`."""
    path = without_union_tags(detail["loc"], root)
    above = tree.at(path[:-1])
    if above is not None and not isinstance(above.value, dict | tuple) and len(path) > 1:
        path = path[:-1]  # a bare number is the value of the field
    name = ".".join(map(str, path)) or "the spec"
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return problem_at(tree, path, f"unknown key '{name}'", _known_keys(path, tree, root), key=True)
    if kind == "missing" and path and isinstance(path[-1], int):
        node, above = tree.at(path[:-1]), ".".join(map(str, path[:-1]))
        items = f"{len(typing.get_args(_lists(path[:-1], root)[0]))} items, not {len(node.items) if node else 0}"
        return problem_at(tree, path[:-1], f"'{above}' needs {items}", "")
    if kind == "missing" and path:
        words = [str(word) for word in _literals(path, root)]
        return problem_at(
            tree, path, f"'{name}' is missing", f"add {path[-1]}: {' or '.join(words) or '...'}", key=True
        )
    if kind == "union_tag_not_found":
        tag = str(context["discriminator"]).strip("'")
        return problem_at(
            tree, path, f"'{name}' needs '{tag}'", f"add {tag}: one of {', '.join(_tags(path, tag, root))}", key=True
        )
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        node = tree.at((*path, tag))
        message = f"'{name}.{tag}' cannot be {_as_written(node.plain() if node else context['tag'])}"
        return problem_at(tree, (*path, tag), message, nearest(context["tag"], _tags(path, tag, root)))
    if kind == "value_error":
        return problem_at(
            tree, path, f"'{name}': {context['error']}", "", key=not isinstance(path[-1], str) if path else True
        )
    if detail["loc"][-1:] == ("[key]",):
        return problem_at(tree, path, f"'{name}' cannot be a name", "use letters, digits, _ and -", key=True)
    message, hint = _wrong_value(detail, path, root)
    return problem_at(tree, path, f"'{name}' {message}", hint)


def problem_at(tree: Node, path: Path_, message: str, hint: str, *, key: bool = False) -> Problem:
    """Place a problem at the value of a path, or at its key; the values that it overrides are its `related` places."""
    node, exact = tree.nearest(path)
    related: list[tuple[str, Place]] = []
    over = node.over if exact else None
    while over is not None:
        related.append((f"overrides {_as_written(over.plain())} at", over.place))
        over = over.over
    return Problem(message, tree.where(path, key=key), hint, tuple(related))


def _wrong_value(detail: ErrorDetails, path: Path_, root: type[Section]) -> tuple[str, str]:
    """Return message and hint for a value that is wrong in itself."""
    kind, context, value, allowed = detail["type"], detail.get("ctx", {}), detail["input"], _range(path, root)
    if kind == "literal_error":
        known = _literals(path, root) or _bare_words(path, root)
        words = ", ".join(map(str, known))
        return f"must be {' or '.join(words.rsplit(', ', 1))}, not {_as_written(value)}", _close(value, known)
    if kind in FORMS:
        bare = any(is_section(arm) and arm.bare for arm in slot_at(path, root=root))
        words = ", ".join(_bare_words(path, root)) or "a number"
        form = f"{words} or a map" if bare else FORMS[kind]
        hint = _as_number(value, kind, path, root) or _for_example(path, root) or allowed
        return f"must be {form}, not {_as_written(value)}", hint
    if kind in LIMITS:
        return f"must be {LIMITS[kind]} {_limit(next(iter(context.values())))}, not {_as_written(value)}", allowed
    if kind == "form":
        # if the field can be a list, this one has another length, and its items show what is wrong
        shown = _listed(value) if _lists(path, root) else _as_written(value)
        return f"{detail['msg']}, not {shown}", _as_number(value, kind, path, root)
    if kind in ("too_short", "string_too_short"):
        least = int(context["min_length"])
        return "must not be empty" if least == 1 else f"needs at least {least} items", ""
    if kind in ("too_long", "string_too_long"):
        return f"is too long: at most {context['max_length']}", ""
    if kind == "multiple_of":
        return f"must be a multiple of {context['multiple_of']}, not {_as_written(value)}", allowed
    if kind == "string_pattern_mismatch":
        return f"cannot be {_as_written(value)}", "use letters, digits and _ . = , + -"
    return f"is invalid: {kind.replace('_', ' ')}, {_as_written(value)}", allowed


def _as_written(value: Any) -> str:
    """Return a value as a user would write it, cut to 60 characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(value: Any) -> str:
    """Return a value as a user would write it, a list with its items, cut to 60 characters."""
    if not isinstance(value, tuple):
        return _as_written(value)
    text = f"[{', '.join(_as_written(item) for item in cast('tuple[Any, ...]', value))}]"
    return text if len(text) <= 60 else text[:57] + "..."


def can_be_list(path: Path_) -> bool:
    """Return whether the field at a path of the spec may be a list."""
    return bool(_lists(path, Spec))


def _lists(path: Path_, root: type[Section]) -> list[Any]:
    """Return the arms of the field at a path that are lists."""
    return [arm for arm in slot_at(path, root=root) if typing.get_origin(arm) is tuple]


def _takes_numbers(path: Path_, root: type[Section]) -> bool:
    """Return whether the field at a path may be a number, also one that stands for a map."""
    arms = slot_at(path, root=root)
    return any(arm in (int, float) or (is_section(arm) and arm.bare) for arm in arms) and not _bare_words(path, root)


def _bare_words(path: Path_, root: type[Section]) -> list[str]:
    """The words that stand for a map at a path; [] where numbers do, or nothing does."""
    arms = [arm for arm in slot_at(path, root=root) if is_section(arm) and arm.bare]
    return [str(word) for arm in arms for word in _literals((*path, arm.bare or ""), root)]


def _literals(path: Path_, root: type[Section]) -> list[Any]:
    """Return the words that the field at a path allows; none if it is not a choice of words."""
    literals = [arm for arm in slot_at(path, root=root) if typing.get_origin(arm) is typing.Literal]
    return [word for arm in literals for word in typing.get_args(arm)]


def _for_example(path: Path_, root: type[Section]) -> str:
    """Return an example of how to start the map at a path, if a tag chooses its arm; else ""."""
    for tag in TAGS:
        if words := _tags(path, tag, root):
            return f"for example {{{tag}: {words[0]}, ...}}"
    return ""


def _close(value: Any, known: list[Any]) -> str:
    hint = nearest(value, map(str, known))
    return hint if hint.startswith("did you") else ""


def _as_number(value: Any, kind: str, path: Path_, root: type[Section]) -> str:
    """Return a hint for a word that is meant as a number, such as '1_000' or '0.5' in quotes; else ""."""
    if not isinstance(value, str) or not (kind in ("int_type", "float_type") or _takes_numbers(path, root)):
        return ""
    plain = value.replace("_", "").replace(",", "" if kind == "int_type" else ".")
    try:
        float(plain)
    except ValueError:
        return ""
    return f"write {plain}, without quotes" if len(plain) < 40 else ""


def _known_keys(path: Path_, tree: Node, root: type[Section]) -> str:
    """Return a hint for an unknown key: the keys that its section knows, in the arm that its tag chooses."""
    if path[-1] == "<<":
        return "use extends"
    if str(path[-1]).startswith("$"):
        return "write a directive below the key that it changes"
    slot = chosen(slot_at(path[:-1], tree, root), tree.at(path[:-1]))
    known = (*field_names(slot), *(("extends", "recipe", *FILE_KEYS) if len(path) == 1 and root is Spec else ()))
    return nearest(path[-1], known, "known keys:")


def _tags(path: Path_, tag: str, root: type[Section]) -> list[str]:
    """Return the values of a tag that choose an arm at a path."""
    return [str(value) for arm in slot_at(path, root=root) if is_section(arm) for value in tag_values(arm, tag)]


def _range(path: Path_, root: type[Section]) -> str:
    """Return the allowed range of the number at a path in words, such as `allowed: 1 to 512`; else ""."""
    return f"allowed: {words}" if (words := range_of(constraints(path, root))) else ""


def range_of(limits: list[Any]) -> str:
    """Return a range in words from annotated limits: `1 to 512`, `above 0, below 100`."""
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
    """Return the limits of the field at a path, from its annotation, a list's items, or optional values."""
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


def inclusive_limits(path: Path_) -> list[Any]:
    """Return the least and the largest value that the field at a path of the spec allows, as far as they exist."""
    return [m.ge if isinstance(m, Ge) else m.le for m in constraints(path) if isinstance(m, Ge | Le)]


def limits_of(metadata: Sequence[Any], annotation: Any) -> list[Any]:
    """Return the limits of a field, including those inside optional values."""
    return [*metadata, *_nested(annotation)]


def _nested(annotation: Any) -> list[Any]:
    metadata: list[Any] = list(getattr(annotation, "__metadata__", ()))
    if typing.get_origin(annotation) not in (tuple, typing.Literal):
        for arg in typing.get_args(annotation):
            metadata += _nested(arg)
    return [m for item in metadata for m in (getattr(item, "metadata", None) or [item])]


def _item(annotation: Any) -> tuple[list[Any], Any]:
    """Return the limits and the annotation of a list's items."""
    for arm in arms_of(annotation):
        if typing.get_origin(arm) is tuple:
            return _nested(typing.get_args(arm)[0]), typing.get_args(arm)[0]
    return [], Any
