"""Merge one spec over another: maps merge by key, lists and scalars replace, and every value keeps its place.

- Where `kind` or `arch` changes, fields that only the old arm has are dropped, with a note. So are fields that have
  another type in the new arm: they only share a name, as `classes` of simulated clips and of videos do.
- A bare number that meets a map of the same section is its main field (`kd: 0.5` is `kd: {weight: 0.5}`), and
  so is a bare word (`quantise: int8`).
- `$delete: true` removes a key; `$replace: ...` replaces a value as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_origin

from pydantic import BaseModel

from stagedkd.errors import Problem
from stagedkd.spec.fields import ROOT, TAGS, Slot, arm_tagged, child, chosen, is_section, nearest
from stagedkd.spec.schema.base import Section
from stagedkd.spec.yaml import Node, Path_

DIRECTIVES = ("$delete", "$replace")


@dataclass
class Merger:
    """Merges specs, and collects the notes and problems of all its merges."""

    notes: list[Problem] = field(default_factory=list[Problem])
    problems: list[Problem] = field(default_factory=list[Problem])

    def merge(self, below: Node, above: Node) -> Node:
        """Merge `above` over `below`, both roots of a spec. A wrong directive is ignored and goes to `problems`."""
        return self._merge_maps(below, above, (), ROOT)

    def _merge_maps(self, below: Node, above: Node, path: Path_, slot: Slot) -> Node:
        """Merge two maps. The result has the place of the upper one; new keys go last."""
        entries = dict(below.map)
        for name in self._drop_old_fields(below, above, path, slot):
            del entries[name]
        slot = chosen(chosen(slot, above), below)
        for name, node in above.map.items():
            merged = self._merge_values(entries.get(name), node, (*path, name), child(slot, name))
            if merged is None:
                entries.pop(name, None)
            else:
                entries[name] = merged
        return Node(entries, above.place, above.key or below.key, below.over)

    def _merge_values(self, below: Node | None, above: Node, path: Path_, slot: Slot) -> Node | None:
        """Merge `above` over `below`, which may be None; return None if the value is deleted."""
        if any(name.startswith("$") for name in above.map):
            return self._apply_directive(below, above, path, slot)
        if below is None:
            return self._resolve_directives(above, path, slot)
        below, above = _as_map(below, above, slot), _as_map(above, below, slot)
        if isinstance(below.value, dict) and isinstance(above.value, dict):
            return self._merge_maps(below, above, path, slot)
        return replace(self._resolve_directives(above, path, slot), over=below)

    def _resolve_directives(self, node: Node, path: Path_, slot: Slot) -> Node:
        """Return a value that has nothing below it, with the directives inside it applied."""
        if not isinstance(node.value, dict):
            return node
        return self._merge_maps(Node({}, node.place, node.key), node, path, slot)

    def _apply_directive(self, below: Node | None, above: Node, path: Path_, slot: Slot) -> Node | None:
        """Apply `$delete` or `$replace`; a wrong directive leaves `below` as it is."""
        name = next(name for name in above.map if name.startswith("$"))
        node, dotted = above.map[name], ".".join(map(str, path))
        place = node.key or node.place
        if name not in DIRECTIVES:
            self.problems.append(Problem(f"unknown directive '{name}'", place, nearest(name, DIRECTIVES)))
        elif len(above.map) > 1:
            self.problems.append(Problem(f"'{name}' must be alone in its map", place, "move the other keys"))
        elif name == "$replace":
            whole = self._resolve_directives(Node(node.value, node.place, above.key), path, slot)
            return replace(whole, over=below)
        elif node.value is not True:
            self.problems.append(Problem("'$delete' must be true", node.place, "write $delete: true, or remove it"))
        elif below is None:
            self.problems.append(Problem(f"there is no '{dotted}' to delete", place, "remove this directive"))
        else:
            return None
        return below

    def _drop_old_fields(self, below: Node, above: Node, path: Path_, slot: Slot) -> list[str]:
        """Return the keys of `below` to drop, with a note for each: `above` chooses another arm, which lacks them or
        means something else by them."""
        for tag in TAGS:
            old, new = below.below(tag), above.below(tag)
            if old is None or new is None or old.value == new.value:
                continue
            was, now = arm_tagged(slot, tag, old.value), arm_tagged(slot, tag, new.value)
            if was is None or now is None:
                continue
            dropped = [n for n in below.map if n in was.model_fields and not _same_field(was, now, n)]
            for name in dropped:
                node, dotted = below.map[name], ".".join(map(str, (*path, name)))
                self.notes.append(
                    Problem(
                        f"dropped '{dotted}': {tag} is now {new.value}",
                        node.key or node.place,
                        f"only {old.value} has it"
                        if name not in now.model_fields
                        else f"{new.value} means something else by '{name}'",
                        ((f"{tag} changes at", new.place),),
                        "note",
                    )
                )
            return dropped
        return []


def _same_field(was: type[BaseModel], now: type[BaseModel], name: str) -> bool:
    """Return whether two arms have a field of this name and of one type. Other types are alternatives of a tag."""
    if name not in now.model_fields:
        return False
    return name in TAGS or was.model_fields[name].annotation == now.model_fields[name].annotation


def _as_map(node: Node, other: Node, slot: Slot) -> Node:
    """Return a bare value that meets a map as a map with its main field; return any other node unchanged."""
    if (
        not isinstance(node.value, int | float | str)
        or isinstance(node.value, bool)
        or not isinstance(other.value, dict)
    ):
        return node
    name = next((arm.bare for arm in slot if is_section(arm) and arm.bare and _bares(arm, node.value)), None)
    return Node({name: Node(node.value, node.place, node.key, node.over)}, node.place, node.key) if name else node


def _bares(arm: type[Section], value: float | str) -> bool:
    """Whether the main field of a section takes words or numbers as the value is one."""
    words = get_origin(arm.model_fields[arm.bare or ""].annotation) is Literal
    return isinstance(value, str) == words


def without(tree: Node, names: frozenset[str]) -> Node:
    """Return a map without some of its keys."""
    return replace(tree, value={name: node for name, node in tree.map.items() if name not in names})


def overlay(tree: Node, path: tuple[str, ...], node: Node) -> Node:
    """Return a tree with only `node` at `path`. The maps on the way have the places that they have in `tree`."""
    for end in range(len(path) - 1, -1, -1):
        above = tree.at(path[:end])
        is_map = above is not None and isinstance(above.value, dict)
        place, key = (above.place, above.key) if above and is_map else (node.place, node.key)
        node = Node({path[end]: node}, place, key)
    return node
