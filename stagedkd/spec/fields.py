"""The schema as a tree of slots, for suggestions, merging, and the places of errors.

A slot is a tuple of the arms that a path of the spec allows: sections, maps, lists, words and numbers. Unions and
optional values are taken apart.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pydantic import Tag

from stagedkd.spec.schema import Section, Spec
from stagedkd.spec.yaml import Node, Path_

Slot: TypeAlias = tuple[Any, ...]
ROOT: Slot = (Spec,)
TAGS = ("kind", "arch")  # the fields that choose an arm of a union
HIDDEN = frozenset({"digest", "revision", "takes"})  # set by the loader or by the family, not by the user


def is_section(arm: Any) -> bool:
    """Return whether an arm is a section."""
    return isinstance(arm, type) and issubclass(arm, Section)


def field_names(slot: Slot) -> tuple[str, ...]:
    """Return the keys that the sections of a slot know."""
    names = (name for arm in slot if is_section(arm) for name in arm.model_fields if name not in HIDDEN)
    return tuple(dict.fromkeys(names))


def arm_tagged(slot: Slot, tag: str, value: Any) -> type[Section] | None:
    """Return the section that `tag: value` chooses; None if there is none."""
    return next((arm for arm in slot if is_section(arm) and value in tag_values(arm, tag)), None)


def tag_values(arm: type[Section], tag: str) -> tuple[Any, ...]:
    """Return the values that the tag of a section may have; () if it has no such tag."""
    field = arm.model_fields.get(tag)
    return typing.get_args(field.annotation) if field and typing.get_origin(field.annotation) is typing.Literal else ()


def chosen(slot: Slot, node: Node | None) -> Slot:
    """Return the arm that a value chooses by its tag or mark; all arms of the slot if it has neither."""
    for tag in TAGS:
        value = node.below(tag) if node is not None else None
        arm = arm_tagged(slot, tag, value.value) if value is not None and isinstance(value.value, str) else None
        if arm is not None:
            return (arm,)
    marked = [arm for arm in slot if is_section(arm) and arm.mark and node is not None and node.below(arm.mark)]
    return tuple(marked) or slot


def child(slot: Slot, part: str | int) -> Slot:
    """Return the slot at a key or index below a slot; () if nothing is allowed there."""
    arms: list[Any] = []
    for arm in slot:
        arms += _arms_below(arm, part if isinstance(part, str) else 0)
    return tuple(dict.fromkeys(arms))


@lru_cache(maxsize=4096)
def _arms_below(arm: Any, part: str | int) -> Slot:
    """Return the arms at a key or index below one arm."""
    if is_section(arm):
        field = None if part in HIDDEN else arm.model_fields.get(part)
        return tuple(arms_of(field.annotation)) if field else ()
    container = Mapping if isinstance(part, str) else Sequence
    origin = typing.get_origin(arm)
    if not (isinstance(origin, type) and issubclass(origin, container)):
        return (Any,) if arm is Any else ()
    return tuple(arms_of(typing.get_args(arm)[-1 if origin is not tuple else 0]))


def arms_of(annotation: Any) -> Iterator[Any]:
    """Iterate over the arms of an annotation: unions and Annotated are taken apart, None is left out."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from arms_of(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for arm in typing.get_args(annotation):
            yield from arms_of(arm)
    elif annotation is not type(None):
        yield annotation


def slot_at(path: Path_, tree: Node | None = None, root: type[Section] = Spec) -> Slot:
    """Return the slot at a path below `root`. The tags in `tree`, if given, choose the arms on the way."""
    slot: Slot = (root,)
    node = tree
    for part in path:
        slot = child(chosen(slot, node), part)
        node = node.below(part) if node is not None else None
    return slot


def without_union_tags(location: Sequence[str | int], root: type[Section] = Spec) -> Path_:
    """Convert pydantic's location of an error to a path below `root`, without the union arms, which are in no file."""
    path: list[str | int] = []
    open_arms: list[Any] = [root]
    for part in location:
        labelled = [arm for annotation in open_arms for arm in _arms_labelled(annotation, part)]
        if labelled:
            open_arms = labelled
            continue
        if part == "[key]":
            break
        path.append(part)
        key = part if isinstance(part, str) else 0
        open_arms = [below for annotation in open_arms for below in _annotations_below(annotation, key)]
    return tuple(path)


def _arms_labelled(annotation: Any, label: str | int) -> list[Any]:
    """Return the arms of a tagged union that carry a label; none if the annotation is no union."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    arms: list[Any] = []
    for arm in typing.get_args(annotation):
        tags = [m.tag for m in getattr(arm, "__metadata__", ()) if isinstance(m, Tag)]
        arms += _arms_labelled(arm, label)  # a union inside a union, such as an optional one
        if label in tags or (is_section(arm) and any(label in tag_values(arm, tag) for tag in TAGS)):
            arms.append(arm)
    return arms


def _annotations_below(annotation: Any, part: str | int) -> list[Any]:
    """Return the annotations at a key or index, with unions left whole, so that later labels can match."""
    annotations: list[Any] = []
    for arm in arms_of(annotation):
        if is_section(arm):
            annotations += [arm.model_fields[part].annotation] if part in arm.model_fields else []
        elif typing.get_origin(arm) is not typing.Literal:
            annotations += [arg for arg in typing.get_args(arm)[-2:] if arg is not Ellipsis]
    return annotations


def nearest(word: object, known: Iterable[str], otherwise: str = "use one of") -> str:
    """Return a hint: the known word that was probably meant, else all known words."""
    words = list(known)
    near = difflib.get_close_matches(str(word).lower(), words, 1) or difflib.get_close_matches(str(word), words, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"{otherwise} {', '.join(words)}" if words else ""
