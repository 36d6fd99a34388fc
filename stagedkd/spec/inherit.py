"""A file with its parents and its recipe: one tree. Parents < recipe < the file itself.

`extends` names one file or several, relative to the file that names them; several are laid over each other in order.
`recipe` names a shipped method or a file; it replaces `distill`, `cascade` and `refine` whole. `name` and `grid` belong
to their own file and are not inherited.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path

from stagedkd.errors import Problem, SpecError, UsageError
from stagedkd.spec.fields import nearest
from stagedkd.spec.merge import Merger, without
from stagedkd.spec.yaml import Node, read_yaml

ROOT_MARKS = ("params.yaml", "stagedkd.lock", "dvc.yaml", ".git")
METHOD = frozenset({"distill", "cascade", "refine"})
OWN = frozenset({"extends", "recipe", "grid", "name"})
MAX_PARENTS = 100  # files laid for one spec: who needs more has a cycle in mind
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Source:
    """A file and all that it inherits. `tree` holds the sections of the spec; `name` and `grid` are the file's own;
    `files` are the file, its parents and the recipes that they name."""

    path: Path
    tree: Node
    name: Node | None
    grid: Node | None
    files: frozenset[Path] = frozenset()


def specs_root(path: Path) -> Path:
    """The project's folder: the nearest one above the spec that has params.yaml, a lock, dvc.yaml or .git."""
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if any((candidate / mark).exists() for mark in ROOT_MARKS):
            return candidate
    return folder


def read_source(path: Path, merger: Merger) -> Source:
    """Read a spec file with its parents and recipe.

    Raises:
        SpecError: a file that is not YAML, a parent or recipe that is not there, outside the root, or a cycle.
        UsageError: no such file.
    """
    reader = _Reader(specs_root(path), merger)
    own = read_yaml(path)
    tree = reader.resolve(path, own, Node({}, own.place), ())
    if reader.problems:
        raise SpecError(reader.problems)
    files = frozenset(reader.laid | reader.recipes)
    return Source(path, replace(tree, place=own.place), own.below("name"), own.below("grid"), files)


def shipped_recipes() -> dict[str, Path]:
    """The methods that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def with_recipe(tree: Node, recipe: Node | None, merger: Merger) -> Node:
    """`tree` with a recipe instead of its method; None leaves the method as it is."""
    return merger.merge(without(tree, METHOD), replace(recipe, place=tree.place)) if recipe else tree


def read_recipe(named: Node, root: Path, folder: Path) -> Node | None:
    """The recipe that a value names, by name or by a path relative to `folder`; None for null.

    Raises:
        SpecError: there is no such recipe, or it sets something else than the method.
    """
    if named.value is None:
        return None
    recipe = read_yaml(tidy_path(_recipe_path(named, root, folder)))
    if recipe.map.keys() - METHOD:
        raise SpecError(
            [
                Problem(f"a recipe cannot set '{name}'", node.key, "only distill, cascade and refine")
                for name, node in recipe.map.items()
                if name not in METHOD
            ]
        )
    if "distill" not in recipe.map:
        raise SpecError([Problem("a recipe needs distill", recipe.place, "add distill: {phases: ...}")])
    return recipe


def _recipe_path(named: Node, root: Path, folder: Path) -> Path:
    said = named.value
    if not isinstance(said, str) or not said:
        problem = Problem("'recipe' is the name of a method or the path of a file", named.place, "for example: kd")
        raise SpecError([problem])
    if "/" not in said and not said.endswith((".yaml", ".yml")):
        known = shipped_recipes()
        if said not in known:
            raise SpecError([Problem(f"there is no recipe '{said}'", named.place, nearest(said, known))])
        return known[said]
    path = folder / said
    if not _inside(path, root):
        raise SpecError(
            [Problem(f"recipe {said} lies outside the specs' root", named.place, "move it into the project")]
        )
    if not _is_file(path):
        raise SpecError([_no_file(named, path, folder)])
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _no_file(named: Node, path: Path, folder: Path) -> Problem:
    near = _like(path)
    hint = f"did you mean '{near}'?" if near else f"paths are relative to {folder}"
    return Problem(f"no file {named.value}", named.place, hint)


def tidy_path(path: Path) -> Path:
    """A path without `..` on the way, relative to the working folder where it lies below."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except (OSError, ValueError, RuntimeError):
        return path


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


@dataclass
class _Reader:
    root: Path
    merger: Merger
    problems: list[Problem] = field(default_factory=list[Problem])
    laid: set[Path] = field(default_factory=set[Path])
    recipes: set[Path] = field(default_factory=set[Path])
    count: int = 0

    def resolve(self, path: Path, own: Node, below: Node, chain: tuple[Path, ...]) -> Node:
        """Lay the parents of a file, its recipe and the file itself over `below`, in this order."""
        here = path.resolve()
        if here in self.laid:
            self.merger.notes.append(
                Problem(
                    f"{path} is laid a second time, over what came between",
                    own.place,
                    "two parents share it",
                    (),
                    "note",
                )
            )
        self.laid.add(here)
        for named in self._named(own.below("extends")):
            parent = self._parent(named, path, (*chain, here))
            if parent is None:
                continue
            self.count += 1
            if self.count > MAX_PARENTS:
                problem = Problem(f"more than {MAX_PARENTS} parents in all", named.place, "extend fewer")
                self.problems += [problem] if self.count == MAX_PARENTS + 1 else []
                break
            try:
                text = read_yaml(parent)
            except SpecError as error:
                related = ("extended at", named.place)
                self.problems += [replace(p, related=(*p.related, related)) for p in error.problems]
                continue
            except UsageError as error:
                self.problems.append(Problem(error.message, named.place, error.hint))
                continue
            below = self.resolve(parent, text, below, (*chain, here))
        recipe = own.below("recipe")
        if recipe is not None:
            try:
                found = read_recipe(recipe, self.root, path.parent)
                self.recipes |= {Path(found.place.file).resolve()} if found else set()
                below = with_recipe(below, found, self.merger)
            except SpecError as error:
                self.problems += error.problems
        return self.merger.merge(below, without(own, OWN))

    def _named(self, said: Node | None) -> list[Node]:
        if said is None:
            return []
        named = list(said.items) if isinstance(said.value, tuple) else [said]
        for node in named:
            if not isinstance(node.value, str) or not node.value:
                self.problems.append(
                    Problem("'extends' is a path, or a list of paths", node.place, "for example: a.yaml")
                )
        return [node for node in named if isinstance(node.value, str) and node.value]

    def _parent(self, named: Node, child: Path, chain: tuple[Path, ...]) -> Path | None:
        parent = tidy_path(child.parent / str(named.value))
        if not _inside(parent, self.root):
            self.problems.append(
                Problem(f"parent {named.value} lies outside the specs' root", named.place, "move it into the project")
            )
        elif parent.resolve() in chain:
            row = [p.name for p in chain[chain.index(parent.resolve()) :]]
            message = f"{' extends '.join([*row, row[0]])}: a cycle"
            self.problems.append(Problem(message, named.place, "leave one of them out"))
        elif not _is_file(parent):
            self.problems.append(_no_file(named, parent, child.parent))
        else:
            return parent
        return None


def _like(path: Path) -> str:
    """The name of a YAML file beside a missing one that was probably meant."""
    there = {p.stem: p.name for p in sorted(path.parent.glob("*.yaml"))} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, there, 1)
    return there[near[0]] if near else ""
