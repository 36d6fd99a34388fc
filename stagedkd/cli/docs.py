"""The command `stagedkd docs`: the pages of the documentation, which come with the package."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from stagedkd.cli.common import console, print_lines
from stagedkd.errors import UsageError

PACKAGE = Path(__file__).resolve().parent.parent
LINK = re.compile(r"^- \[([^]]+)\]\(([\w/-]+)\.md\)$|^## (.+)$", re.MULTILINE)


def docs(
    page: Annotated[
        str, typer.Argument(metavar="PAGE", help="Print this page, such as tutorial.", show_default=False)
    ] = "",
) -> None:
    """List the pages of the documentation, or print one.

    The pages are those of this version. They come with the package, so no network is needed.
    """
    folder = pages_folder()
    if page:
        _print_page(_find(folder, page.removesuffix(".md").removeprefix("docs/")))
        return
    for title, name, heading in LINK.findall((folder / "index.md").read_text("utf-8")):
        print_lines([f"\n{heading}:"] if heading else [f"  {name:<28}{title}"])
    print_lines(["", "read one: stagedkd docs PAGE"])


def pages_folder() -> Path:
    """Return the folder of the pages: in a wheel below the package, in a checkout beside it.

    Raises:
        UsageError: neither is there.
    """
    for folder in (PACKAGE / "docs", PACKAGE.parent / "docs"):
        if (folder / "index.md").is_file():
            return folder
    raise UsageError(
        f"there are no pages in {PACKAGE / 'docs'}", hint="install stagedkd from a wheel, or from its folder"
    )


def _find(folder: Path, name: str) -> Path:
    """Return the file of a page: by its path below docs/, or by the last part of that.

    Raises:
        UsageError: there is no such page.
    """
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.md"))}
    known = {short.rpartition("/")[2]: path for short, path in paths.items() if not short.endswith("index")} | paths
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else "list the pages: stagedkd docs"
        raise UsageError(f"there is no page '{name}'", hint=hint)
    return known[name]


def _print_page(path: Path) -> None:
    """Print a page: formatted on a terminal, else as it is."""
    text = path.read_text("utf-8")
    screen = console()
    if screen.is_terminal:
        from rich.markdown import Markdown

        screen.print(Markdown(text))
    else:
        print(text, end="")
