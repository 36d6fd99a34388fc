"""The templates of the report's pages."""

from __future__ import annotations

import re
from typing import Any


def template(name: str, *, plain: bool = False) -> Any:
    """Load a template of this folder. A `plain` one is text; in others values are escaped for HTML."""
    from jinja2 import Environment, PackageLoader

    environment: Any = Environment(loader=PackageLoader("stagedkd.report", "."), autoescape=not plain)
    environment.filters["breakable"] = _breakable
    return environment.get_template(name)


def _breakable(name: str) -> Any:
    """Return the name of an experiment or a cell as HTML that a browser breaks between its parts."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([,+])", r"\1<wbr>", str(escape(name))))
