"""Make docs/spec.md, the reference of the language, from the docstrings of the sections and their fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stagedkd.spec.describe import Entry, entries
from stagedkd.spec.fields import arms_of, is_section, tag_values
from stagedkd.spec.schema import Grouped, Section, Spec, Train, TrainPatch

HEAD = """\
# The spec, field by field

`make docs` makes this page from the docstrings in `stagedkd/spec/schema/`; do not edit it. A field with the default
"unset" is optional. [language.md](language.md) describes how files build on each other.
"""


def reference() -> str:
    """Return docs/spec.md as Markdown."""
    return "\n".join([HEAD, *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    yield from _table("The whole spec", Spec)
    done: set[type[Section]] = {Spec}
    for name, field in Spec.model_fields.items():
        arms = [arm for arm in _reachable(field.annotation) if arm not in done]
        for arm in arms:
            if arm in done:
                continue
            done.add(arm)
            yield from _table(_title(name, arm), arm)


def _reachable(annotation: Any) -> Iterator[type[Section]]:
    """Iterate over the sections below an annotation, outer ones first."""
    for arm in arms_of(annotation):
        if is_section(arm):
            yield arm
            for field in arm.model_fields.values():
                yield from _reachable(field.annotation)
        else:
            for inner in getattr(arm, "__args__", ()):
                yield from _reachable(inner)


def _title(name: str, arm: type[Section]) -> str:
    for tag in ("kind", "arch"):
        values = tag_values(arm, tag)
        if values and not arm.mark:
            return f"{name}: {tag} {', '.join(map(str, values))}"
    return arm.__name__


def _table(title: str, section: type[Section]) -> Iterator[str]:
    yield f"## {title}\n"
    doc = [section, *(base for base in section.__mro__[1:] if base.__doc__ and issubclass(base, Grouped))]
    yield " ".join(" ".join((part.__doc__ or "").split()) for part in doc) + "\n"
    if section is TrainPatch:
        yield f"Fields: {', '.join(f'`{name}`' for name in Train.model_fields)}.\n"
        return
    yield "| field | type | default | range | meaning |\n|---|---|---|---|---|"
    for row in entries(section):
        yield _row(row)
    yield ""


def _row(row: Entry) -> str:
    plain = row.default in ("", "unset") or " " in row.default
    default = (row.default or "**required**") if plain else f"`{row.default}`"
    cells = [f"`{row.name}`", row.type, default, row.range, row.doc]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(reference(), end="")
