"""What may stand where: the schema as a tree of slots, for suggestions, merging, and the places of errors.

A slot is the row of arms that a place of the spec allows: sections, maps, lists, words and numbers, unions and optional
values taken apart.
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
HIDDEN = frozenset({"digest"})  # set by the loader, not by the user


def is_section(arm: Any) -> bool:
    """Whether an arm is a section."""
    return isinstance(arm, type) and issubclass(arm, Section)


def field_names(slot: Slot) -> tuple[str, ...]:
    """The keys that the sections of a slot know."""
    found = (name for arm in slot if is_section(arm) for name in arm.model_fields if name not in HIDDEN)
    return tuple(dict.fromkeys(found))


def arm_tagged(slot: Slot, tag: str, value: Any) -> type[Section] | None:
    """The section that `tag: value` chooses, None if there is none."""
    return next((arm for arm in slot if is_section(arm) and value in tag_values(arm, tag)), None)


def tag_values(arm: type[Section], tag: str) -> tuple[Any, ...]:
    """What the tag of a section may say; () where it has no such tag."""
    field = arm.model_fields.get(tag)
    return typing.get_args(field.annotation) if field and typing.get_origin(field.annotation) is typing.Literal else ()


def chosen(slot: Slot, node: Node | None) -> Slot:
    """The arms that a value chooses by its tag; all of them where it has none that is known."""
    for tag in TAGS:
        said = node.below(tag) if node is not None else None
        arm = arm_tagged(slot, tag, said.value) if said is not None and isinstance(said.value, str) else None
        if arm is not None:
            return (arm,)
    return slot


def child(slot: Slot, part: str | int) -> Slot:
    """What may stand at a key or index below a slot; () where nothing may."""
    found: list[Any] = []
    for arm in slot:
        found += _below(arm, part if isinstance(part, str) else 0)
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def _below(arm: Any, part: str | int) -> Slot:
    if is_section(arm):
        field = None if part in HIDDEN else arm.model_fields.get(part)
        return tuple(arms_of(field.annotation)) if field else ()
    wanted = Mapping if isinstance(part, str) else Sequence
    origin = typing.get_origin(arm)
    if not (isinstance(origin, type) and issubclass(origin, wanted)):
        return (Any,) if arm is Any else ()
    return tuple(arms_of(typing.get_args(arm)[-1 if origin is not tuple else 0]))


def arms_of(annotation: Any) -> Iterator[Any]:
    """Unions and Annotated taken apart; sections, maps, lists, words and numbers as they are."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from arms_of(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for arm in typing.get_args(annotation):
            yield from arms_of(arm)
    elif annotation is not type(None):
        yield annotation


def slot_at(path: Path_, tree: Node | None = None, root: type[Section] = Spec) -> Slot:
    """What may stand at a path below `root`; the tags in `tree`, if given, choose the arms on the way."""
    slot: Slot = (root,)
    node = tree
    for part in path:
        slot = child(chosen(slot, node), part)
        node = node.below(part) if node is not None else None
    return slot


def without_union_tags(location: Sequence[str | int], root: type[Section] = Spec) -> Path_:
    """pydantic's location of an error as a path below `root`: the names of union arms stand in no file."""
    path: list[str | int] = []
    open_arms: list[Any] = [root]
    for part in location:
        arm = [found for annotation in open_arms for found in _labelled(annotation, part)]
        if arm:
            open_arms = arm
            continue
        if part == "[key]":
            break
        path.append(part)
        key = part if isinstance(part, str) else 0
        open_arms = [found for annotation in open_arms for found in _raw_below(annotation, key)]
    return tuple(path)


def _labelled(annotation: Any, label: str | int) -> list[Any]:
    """The arms of a tagged union that carry a label; none where there is no choice."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    found: list[Any] = []
    for arm in typing.get_args(annotation):
        tags = [m.tag for m in getattr(arm, "__metadata__", ()) if isinstance(m, Tag)]
        found += _labelled(arm, label)  # a union in a union: one that may be left out
        if label in tags or (is_section(arm) and any(label in tag_values(arm, tag) for tag in TAGS)):
            found.append(arm)
    return found


def _raw_below(annotation: Any, part: str | int) -> list[Any]:
    """The annotations below, unions left whole, so that a label can still be met."""
    found: list[Any] = []
    for arm in arms_of(annotation):
        if is_section(arm):
            found += [arm.model_fields[part].annotation] if part in arm.model_fields else []
        elif typing.get_origin(arm) is not typing.Literal:
            found += [arg for arg in typing.get_args(arm)[-2:] if arg is not Ellipsis]
    return found


def nearest(word: object, known: Iterable[str], otherwise: str = "one of") -> str:
    """A suggestion: the known word that was probably meant, else all of them."""
    listed = list(known)
    near = difflib.get_close_matches(str(word).lower(), listed, 1) or difflib.get_close_matches(str(word), listed, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"{otherwise} {', '.join(listed)}" if listed else ""
