"""Words that stand in for an empty cell, and integers that were written as decimals: pandas writes both. Torch-free."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stagedkd.data.layouts.tables import Row, Table

# What pandas, spreadsheets and R write for no value. Nothing else has these names.
EMPTY = frozenset(
    ["nan", "-nan", "<na>", "n/a", "null", "#n/a", "#na", "#n/a n/a", "nat", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)
# These may also be the name of a class: a gesture "none", the class -1. No group has such a name.
DOUBTFUL = frozenset(["none", "na", "nil", "-", "--", "?", "-1", "-1.0"])
_DECIMAL = re.compile(r"-?\d+\.0+")
_WHOLE = re.compile(r"-?\d{1,18}(\.0+)?")
Tables = Mapping[str, Table]


def without_stand_ins(tables: Tables, notes: list[str]) -> dict[str, Table]:
    """Return tables with empty cells for words such as nan, and with integers for labels and groups such as 3.0.

    None, NA and -1 are empty, too: outside of the columns path and label; as a label, where all others are integers
    from 0 on. All tables of a data set are seen together. What was changed or is doubtful goes to `notes`.
    """
    changed = _changed(tables, "nan and the like are read as empty cells", notes, _cell)
    labels = _cells(changed, "label")
    numbers = [label for label in labels if label.lower() not in DOUBTFUL]
    if numbers and all(_WHOLE.fullmatch(label) for label in numbers):
        if min(map(_number, numbers)) >= 0:
            changed = _without_doubtful(changed, notes)
        changed = _as_integers(changed, "label", notes)
    else:
        for word in sorted({label for label in labels if label.lower() in DOUBTFUL}):
            notes.append(f"the label {word} is read as a class: if it means no label, leave it empty")
    groups = _cells(changed, "group")
    if all(_WHOLE.fullmatch(group) for group in groups):
        changed = _with_equal_numbers(_as_integers(changed, "group", notes), notes)
    return changed


def _cells(tables: Tables, column: str) -> list[str]:
    return [cell for table in tables.values() for row in table.rows if (cell := row.cells.get(column, ""))]


def _changed(tables: Tables, what: str, notes: list[str], change: Callable[[str, str], str]) -> dict[str, Table]:
    """Return the tables with changed cells; a note says in how many rows. `change`: (column, cell) -> cell."""
    changed: dict[str, Table] = {}
    for name, table in tables.items():
        rows = [replace(row, cells={c: change(c, cell) for c, cell in row.cells.items()}) for row in table.rows]
        if count := sum(a.cells != b.cells for a, b in zip(table.rows, rows, strict=True)):
            notes.append(f"{table.path.name}: {what}, in {count} rows")
        changed[name] = replace(table, rows=tuple(rows))
    return changed


def _cell(column: str, cell: str) -> str:
    doubtful = cell.lower() in DOUBTFUL and column not in ("path", "label")
    return "" if cell.lower() in EMPTY or doubtful else cell


def _without_doubtful(tables: Tables, notes: list[str]) -> dict[str, Table]:
    """Return the tables without labels that stand in for none, such as -1 among integers from 0 on."""
    changed: dict[str, Table] = {}
    for name, table in tables.items():
        words = sorted({cell for cell in _cells({name: table}, "label") if cell.lower() in DOUBTFUL})
        notes += [f"{table.path.name}: the label {word} is read as no label" for word in words]
        changed[name] = replace(table, rows=_with(table.rows, "label", dict.fromkeys(words, "")))
    return changed


def _as_integers(tables: Tables, column: str, notes: list[str]) -> dict[str, Table]:
    """Return the tables with 3 for 3.0 in a column."""
    changed: dict[str, Table] = {}
    for name, table in tables.items():
        decimals = [cell for cell in _cells({name: table}, column) if _DECIMAL.fullmatch(cell)]
        if decimals:
            notes.append(f"{table.path.name}: {column}s such as {decimals[0]} are read as integers")
        changed[name] = replace(
            table, rows=_with(table.rows, column, {cell: cell.partition(".")[0] for cell in decimals})
        )
    return changed


def _with_equal_numbers(tables: Tables, notes: list[str]) -> dict[str, Table]:
    """Return the tables with one group for 3 and 03. Where all numbers are written in one way, they stay."""
    forms: dict[int, set[str]] = defaultdict(set)
    for group in _cells(tables, "group"):
        forms[_number(group)].add(group)
    several = {number: sorted(written) for number, written in forms.items() if len(written) > 1}
    if not several:
        return dict(tables)
    number, written = min(several.items())
    notes.append(f"the groups {' and '.join(written)} are the same number, {number}: they are one group")
    one = {form: str(number) for number, written in several.items() for form in written}
    return {name: replace(table, rows=_with(table.rows, "group", one)) for name, table in tables.items()}


def _with(rows: Iterable[Row], column: str, cells: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the rows with other cells in a column."""
    return tuple(
        replace(row, cells={**row.cells, column: cells[row.cells[column]]})
        if row.cells.get(column, "") in cells
        else row
        for row in rows
    )


def _number(cell: str) -> int:
    return int(cell.partition(".")[0])
