"""What the shell is offered while you type. Nothing here raises: a shell that completes shows no errors.

A shell gets files by its own completion where a function here returns nothing.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import typer


def specs(incomplete: str) -> list[str]:
    """The specs of the project that begin with what was typed: those in this folder and below `specs/`."""
    files = [*Path().glob("*.yaml"), *Path("specs").rglob("*.yaml")]
    names = (file.as_posix() for file in files if not file.name.endswith(".tuned.yaml"))
    return sorted(name for name in names if name.startswith(incomplete) and name not in _NO_SPECS)


_NO_SPECS = ("params.yaml", "dvc.yaml")


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """The recipes that begin with what was typed, each with its title."""
    from stagedkd.spec.inherit import shipped_recipes

    files = {name: path for name, path in shipped_recipes().items() if name.startswith(incomplete)}
    titles = {name: path.read_text("utf-8").split("\n", 1)[0].lstrip("# ") for name, path in files.items()}
    return [(name, shorten(title.partition(":")[0], 60)) for name, title in titles.items()]  # fish takes one line


def keys(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The keys of the artifacts in the store that begin with what was typed, each with its kind."""
    from stagedkd.errors import StagedkdError
    from stagedkd.plan.runtime import load_runtime

    try:
        store = ctx.params.get("store") or load_runtime(Path()).folder("store")
        folders = [path.name.rpartition("-") for path in Path(store).iterdir() if not path.name.startswith(".")]
    except (StagedkdError, OSError):
        return []
    return sorted((key, kind) for kind, _, key in folders if kind and key.startswith(incomplete))
