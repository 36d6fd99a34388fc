"""One spec laid over another: maps merge by key, lists and scalars replace, and every value keeps its place.

- Where `kind` or `arch` changes, what only the old arm has falls, with a note.
- A bare number beside a map of the same section is the field it stands for (`kd: 0.5` is `kd: {weight: 0.5}`).
- `$delete: true` takes a key away; `$replace: ...` takes a value whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stagedkd.errors import Problem
from stagedkd.spec.fields import ROOT, TAGS, Slot, arm_tagged, child, chosen, is_section, nearest
from stagedkd.spec.yaml import Node, Path_

DIRECTIVES = ("$delete", "$replace")


@dataclass
class Merger:
    """Collects what is to be said about the merges that it makes."""

    notes: list[Problem] = field(default_factory=list[Problem])
    problems: list[Problem] = field(default_factory=list[Problem])

    def merge(self, below: Node, above: Node) -> Node:
        """`above` laid over `below`, both roots of a spec. Faulty directives are left out and go to `problems`."""
        return self._maps(below, above, (), ROOT)

    def _maps(self, below: Node, above: Node, path: Path_, slot: Slot) -> Node:
        """Merged maps stand where the upper one does; what is new goes last."""
        entries = dict(below.map)
        for name in self._fallen(below, above, path, slot):
            del entries[name]
        slot = chosen(chosen(slot, above), below)
        for name, node in above.map.items():
            merged = self._over(entries.get(name), node, (*path, name), child(slot, name))
            if merged is None:
                entries.pop(name, None)
            else:
                entries[name] = merged
        return Node(entries, above.place, above.key or below.key, below.over)

    def _over(self, below: Node | None, above: Node, path: Path_, slot: Slot) -> Node | None:
        """`above` over `below`, which may be nothing; None where it is deleted."""
        if any(name.startswith("$") for name in above.map):
            return self._directive(below, above, path, slot)
        if below is None:
            return self._new(above, path, slot)
        below, above = _spelt_out(below, above, slot), _spelt_out(above, below, slot)
        if isinstance(below.value, dict) and isinstance(above.value, dict):
            return self._maps(below, above, path, slot)
        return replace(self._new(above, path, slot), over=below)

    def _new(self, node: Node, path: Path_, slot: Slot) -> Node:
        """A value over nothing: directives inside of it are still acted on."""
        if not isinstance(node.value, dict):
            return node
        return self._maps(Node({}, node.place, node.key), node, path, slot)

    def _directive(self, below: Node | None, above: Node, path: Path_, slot: Slot) -> Node | None:
        name = next(name for name in above.map if name.startswith("$"))
        node, where = above.map[name], ".".join(map(str, path))
        place = node.key or node.place
        if name not in DIRECTIVES:
            self.problems.append(Problem(f"unknown directive '{name}'", place, nearest(name, DIRECTIVES)))
        elif len(above.map) > 1:
            self.problems.append(Problem(f"'{name}' stands alone in its map", place, "move it, or its neighbours"))
        elif name == "$replace":
            whole = self._new(Node(node.value, node.place, above.key), path, slot)
            return replace(whole, over=below)
        elif node.value is not True:
            self.problems.append(Problem("'$delete' is true or not there", node.place, "$delete: true"))
        elif below is None:
            self.problems.append(Problem(f"there is no '{where}' to delete", place, "leave it out"))
        else:
            return None
        return below

    def _fallen(self, below: Node, above: Node, path: Path_, slot: Slot) -> list[str]:
        """The keys of `below` that only its own arm knows, where `above` chooses another."""
        for tag in TAGS:
            old, new = below.below(tag), above.below(tag)
            if old is None or new is None or old.value == new.value:
                continue
            was, now = arm_tagged(slot, tag, old.value), arm_tagged(slot, tag, new.value)
            if was is None or now is None:
                continue
            fallen = [n for n in below.map if n in was.model_fields and n not in now.model_fields]
            for name in fallen:
                node, where = below.map[name], ".".join(map(str, (*path, name)))
                self.notes.append(
                    Problem(
                        f"'{where}' falls: {tag} is now {new.value}",
                        node.key or node.place,
                        f"only {old.value} has it",
                        ((f"{tag} changes at", new.place),),
                        "note",
                    )
                )
            return fallen
        return []


def _spelt_out(node: Node, other: Node, slot: Slot) -> Node:
    """A bare number beside a map, as the map that it stands for."""
    number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
    if not number or not isinstance(other.value, dict):
        return node
    name = next((arm.bare for arm in slot if is_section(arm) and arm.bare), None)
    return Node({name: Node(node.value, node.place, node.key, node.over)}, node.place, node.key) if name else node


def without(tree: Node, names: frozenset[str]) -> Node:
    """A map less some of its keys."""
    return replace(tree, value={name: node for name, node in tree.map.items() if name not in names})


def overlay(tree: Node, path: tuple[str, ...], node: Node) -> Node:
    """A tree that says nothing but `node` at `path`; the maps on the way stand where they stand in `tree`."""
    for end in range(len(path) - 1, -1, -1):
        found = tree.at(path[:end])
        inside = found is not None and isinstance(found.value, dict)
        place, key = (found.place, found.key) if found and inside else (node.place, node.key)
        node = Node({path[end]: node}, place, key)
    return node
