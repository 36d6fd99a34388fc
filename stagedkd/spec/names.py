"""Names that can be folders."""

from __future__ import annotations

import hashlib
import re

LONGEST_NAME = 120


def short_name(name: str) -> str:
    """Return a name that can be a folder: other characters become _, and a long name is cut and ends in its digest."""
    plain = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", name)
    plain = plain if plain[:1].isalnum() else "x" + plain
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    tail = "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return plain[: LONGEST_NAME - len(tail)] + tail
