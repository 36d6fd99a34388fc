"""Words that stand in for an empty cell, and integers that were written as decimals: pandas writes both. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stagedkd.data.layouts.tables import Row, Table

EMPTY = frozenset(["nan", "<na>", "n/a", "null"])
_DECIMAL = re.compile(r"-?\d+\.0+")
_WHOLE = re.compile(r"-?\d+(\.0+)?")


def without_stand_ins(table: Table, notes: list[str]) -> tuple[Row, ...]:
    """Return the rows of a table with empty cells for words such as nan, and with integer labels for 3.0; a label of -1
    among integers from 0 is empty, too. What was changed goes to `notes`."""
    rows = [replace(row, cells={name: _cell(cell) for name, cell in row.cells.items()}) for row in table.rows]
    changed = sum(a.cells != b.cells for a, b in zip(table.rows, rows, strict=True))
    if changed:
        notes.append(f"{table.path.name}: nan and the like are read as empty cells, in {changed} rows")
    labels = [row.cells.get("label", "") for row in rows]
    if not all(_WHOLE.fullmatch(label) for label in labels if label):
        return tuple(rows)
    if any(map(_DECIMAL.fullmatch, labels)):
        notes.append(
            f"{table.path.name}: labels such as {next(filter(_DECIMAL.fullmatch, labels))} are read as integers"
        )
    rows = [
        replace(row, cells={**row.cells, "label": _integer(label)}) for row, label in zip(rows, labels, strict=True)
    ]
    return _without_minus_one(table, rows, notes)


def _without_minus_one(table: Table, rows: Sequence[Row], notes: list[str]) -> tuple[Row, ...]:
    numbers = {int(row.cells["label"]) for row in rows if row.cells.get("label")}
    if -1 not in numbers or min(numbers) < -1:
        return tuple(rows)
    notes.append(f"{table.path.name}: the label -1 is read as no label")
    return tuple(replace(row, cells={**row.cells, "label": ""}) if row.cells["label"] == "-1" else row for row in rows)


def _cell(cell: str) -> str:
    return "" if cell.lower() in EMPTY else cell


def _integer(label: str) -> str:
    return label.partition(".")[0]
