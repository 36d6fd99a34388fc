"""The templates of the report's pages."""

from __future__ import annotations

from typing import Any


def template(name: str, *, plain: bool = False) -> Any:
    """Load a template of this folder. A `plain` one is text; in others values are escaped for HTML."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("stagedkd.report", "."), autoescape=not plain).get_template(name)
