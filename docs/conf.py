"""The site of the documentation: `make site`. Sphinx reads the Markdown of this folder as a code host shows it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from stagedkd._version import __version__ as release  # noqa: E402, F401 - Sphinx reads it

project = "stagedkd"
copyright = "the authors of stagedkd, Apache-2.0"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["_static"]
highlight_language = "text"  # of a block that names no language
myst_heading_anchors = 4  # `page.md#a-heading`, as on a code host
html_theme = "furo"
html_title = "stagedkd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
PARTS = re.compile(r"^## (.+)$|^- \[([^]]+)\]\(([\w/-]+)\.md\)", re.MULTILINE)


def navigation(text: str) -> str:
    """The lists of docs/index.md as Sphinx's navigation: each heading with the pages that its list links to."""
    lines: list[str] = []
    for heading, title, page in PARTS.findall(text):
        if heading:
            lines += ["```", "", "```{toctree}", ":hidden:", f":caption: {heading}", ""]
        else:
            lines.append(f"{title} <{page}>")
    return "\n".join([*lines[1:], "```", ""])  # the first fence closes nothing


def add_navigation(_app: Any, page: str, source: list[str]) -> None:
    """Give the first page the navigation, and the page of the decisions all files of its folder."""
    if page == root_doc:
        source[0] += "\n" + navigation(source[0])
    elif page == "decisions/index":
        source[0] += "\n```{toctree}\n:maxdepth: 1\n:glob:\n\n[0-9]*\n```\n"


SOUND = {  # what the theme leaves out for screen readers and keyboards
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="This page">',
    "<pre>": '<pre tabindex="0">',  # wide ones are scrolled
    '<div class="table-wrapper colwidths-auto docutils container">': (
        '<div class="table-wrapper colwidths-auto docutils container" tabindex="0">'
    ),
}


def complete(app: Any, _error: Exception | None) -> None:
    """Complete the pages that were written."""
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf-8")
        for part, better in SOUND.items():
            text = text.replace(part, better)
        page.write_text(text, "utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", complete)
