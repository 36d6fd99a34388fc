"""Merge a file with its parents and its recipe into one tree. Parents < recipe < the file itself.

`extends` names one file or several, relative to the file that names them; several are merged in order. `recipe` names a
shipped method or a file; it replaces `distill`, `cascade` and `refine` as a whole. `name`, `grid`, `tune`, `tuned` and
`compare` belong to the file in which they are written and are not inherited.
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
FILE_KEYS = ("grid", "tune", "tuned", "compare")  # what a file says about its own settings
NOT_INHERITED = frozenset({"extends", "recipe", "name", *FILE_KEYS})
MAX_PARENTS = 100  # files merged for one spec
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Source:
    """A file with everything that it inherits.

    `tree` holds the sections of the spec. `name`, `grid`, `tune`, `tuned` and `compare` are those of the file itself.
    `files` are the file, its parents and the recipes that they name.
    """

    path: Path
    tree: Node
    name: Node | None
    grid: Node | None
    files: frozenset[Path] = frozenset()
    tune: Node | None = None
    tuned: Node | None = None
    compare: Node | None = None


def specs_root(path: Path) -> Path:
    """Return the project's folder: the nearest one above the spec with params.yaml, a lock, dvc.yaml or .git."""
    folder = path.resolve().parent
    return next(filter(_is_root, (folder, *folder.parents)), folder)


def in_project(path: Path) -> bool:
    """Return whether a spec at `path` is in a project, so that some folder above it has one of these marks."""
    return _is_root(specs_root(path))


def _is_root(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ROOT_MARKS)


def read_source(path: Path, merger: Merger) -> Source:
    """Read a spec file with its parents and recipe.

    Raises:
        SpecError: a file is not YAML, a parent or recipe is missing or outside the project, or parents form a cycle.
        UsageError: the file does not exist.
    """
    reader = _Reader(specs_root(path), merger)
    document = read_yaml(path)
    tree = reader.resolve(path, document, Node({}, document.place), ())
    if reader.problems:
        raise SpecError(reader.problems)
    files = frozenset(reader.merged | reader.recipes)
    tree = replace(tree, place=document.place)
    own = {key: document.below(key) for key in FILE_KEYS}
    return Source(path, tree, document.below("name"), files=files, **own)


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def with_recipe(tree: Node, recipe: Node | None, merger: Merger) -> Node:
    """Return `tree` with a recipe in place of its method; None leaves the method as it is."""
    return merger.merge(without(tree, METHOD), replace(recipe, place=tree.place)) if recipe else tree


def read_recipe(named: Node, root: Path, folder: Path) -> Node | None:
    """Read the recipe that a value names, by name or by a path relative to `folder`; return None for null.

    Raises:
        SpecError: the recipe does not exist, or it sets more than the method.
    """
    if named.value is None:
        return None
    recipe = read_yaml(tidy_path(_recipe_path(named, root, folder)))
    if recipe.map.keys() - METHOD:
        raise SpecError(
            [
                Problem(f"a recipe cannot set '{name}'", node.key, "keep only distill, cascade and refine")
                for name, node in recipe.map.items()
                if name not in METHOD
            ]
        )
    if "distill" not in recipe.map:
        raise SpecError([Problem("a recipe needs distill", recipe.place, "add distill: {phases: ...}")])
    return recipe


def _recipe_path(named: Node, root: Path, folder: Path) -> Path:
    """Return the file of the recipe that a value names, or raise SpecError."""
    name = named.value
    if not isinstance(name, str) or not name:
        message = "'recipe' must be the name of a method or the path of a file"
        problem = Problem(message, named.place, "for example recipe: kd")
        raise SpecError([problem])
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        known = shipped_recipes()
        if name not in known:
            raise SpecError([Problem(f"there is no recipe '{name}'", named.place, nearest(name, known))])
        return known[name]
    path = folder / name
    if not _inside(path, root):
        raise SpecError([Problem(f"recipe {name} is outside the project", named.place, "move it into the project")])
    if not _is_file(path):
        raise SpecError([_missing_file(named, path, folder)])
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _missing_file(named: Node, path: Path, folder: Path) -> Problem:
    near = _similar_name(path)
    hint = f"did you mean '{near}'?" if near else f"paths are relative to {folder}"
    return Problem(f"there is no file {named.value}", named.place, hint)


def tidy_path(path: Path) -> Path:
    """Return a path without `..`, relative to the working folder if it is below it."""
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
    merged: set[Path] = field(default_factory=set[Path])
    recipes: set[Path] = field(default_factory=set[Path])
    count: int = 0

    def resolve(self, path: Path, tree: Node, below: Node, chain: tuple[Path, ...]) -> Node:
        """Merge the parents of a file, its recipe and the file's own `tree` over `below`, in this order.

        `chain` holds the files that led to this one, to find cycles.
        """
        file = path.resolve()
        if file in self.merged:
            message = f"{path} is merged a second time and overrides the files in between"
            self.merger.notes.append(Problem(message, tree.place, "two parents extend it", (), "note"))
        self.merged.add(file)
        for named in self._extended(tree.below("extends")):
            parent = self._parent(named, path, (*chain, file))
            if parent is None:
                continue
            self.count += 1
            if self.count > MAX_PARENTS:
                problem = Problem(f"more than {MAX_PARENTS} parents in total", named.place, "extend fewer files")
                self.problems += [problem] if self.count == MAX_PARENTS + 1 else []
                break
            try:
                parent_tree = read_yaml(parent)
            except SpecError as error:
                related = ("extended at", named.place)
                self.problems += [replace(p, related=(*p.related, related)) for p in error.problems]
                continue
            except UsageError as error:
                self.problems.append(Problem(error.message, named.place, error.hint))
                continue
            below = self.resolve(parent, parent_tree, below, (*chain, file))
        named = tree.below("recipe")
        if named is not None:
            try:
                recipe = read_recipe(named, self.root, path.parent)
                self.recipes |= {Path(recipe.place.file).resolve()} if recipe else set()
                below = with_recipe(below, recipe, self.merger)
            except SpecError as error:
                self.problems += error.problems
        return self.merger.merge(below, without(tree, NOT_INHERITED))

    def _extended(self, extends: Node | None) -> list[Node]:
        """Return the nodes of the paths that `extends` names."""
        if extends is None:
            return []
        nodes = list(extends.items) if isinstance(extends.value, tuple) else [extends]
        for node in nodes:
            if not isinstance(node.value, str) or not node.value:
                message = "'extends' must be a path or a list of paths"
                self.problems.append(Problem(message, node.place, "for example extends: a.yaml"))
        return [node for node in nodes if isinstance(node.value, str) and node.value]

    def _parent(self, named: Node, child: Path, chain: tuple[Path, ...]) -> Path | None:
        """Return the file of a parent; None if there is a problem with it."""
        parent = tidy_path(child.parent / str(named.value))
        if not _inside(parent, self.root):
            self.problems.append(
                Problem(f"parent {named.value} is outside the project", named.place, "move it into the project")
            )
        elif parent.resolve() in chain:
            names = [p.name for p in chain[chain.index(parent.resolve()) :]]
            message = f"'extends' forms a cycle: {' extends '.join([*names, names[0]])}"
            self.problems.append(Problem(message, named.place, "remove one extends"))
        elif not _is_file(parent):
            self.problems.append(_missing_file(named, parent, child.parent))
        else:
            return parent
        return None


def _similar_name(path: Path) -> str:
    """Return the name of the YAML file in the same folder that was probably meant; "" if there is none."""
    names = {p.stem: p.name for p in sorted(path.parent.glob("*.yaml"))} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, names, 1)
    return names[near[0]] if near else ""
