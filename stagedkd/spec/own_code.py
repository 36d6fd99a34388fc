"""What a Python file of the user imports, read without running it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

ALLOWED = sys.stdlib_module_names | {"stagedkd"}


def project_module(path: Path, root: Path) -> str | None:
    """Return the name of a module of the project `root` that a Python file imports; None if it imports none.

    A key stands for the content of the file alone, so such a module could change without a new key. Installed packages
    are no part of the project, even where their folder lies in it. What is imported by a computed name is not found. A
    file that is not Python has no imports: running it will say what is wrong.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names[node.module.partition(".")[0]] = None
    return next((name for name in names if name not in ALLOWED and _lies_in(name, path, root)), None)


def _lies_in(name: str, path: Path, root: Path) -> bool:
    """Whether Python finds the module in the project, or would if it were started at the root or beside the file: which
    of two modules of one name it takes depends on that."""
    beside = (folder / name for folder in (root, path.parent))
    if any(place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() for place in beside):
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    found = [Path(place).resolve() for place in places if place not in ("built-in", "frozen")]
    return any(p.is_relative_to(root.resolve()) and "site-packages" not in p.parts for p in found)
