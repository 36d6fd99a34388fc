"""What notebooks show of results: the tables of the terminal as HTML, and plots as SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from stagedkd.html import html_list, html_table
from stagedkd.plan.graph import Stage
from stagedkd.report.grid import GridResults
from stagedkd.report.plots.figure import Plot
from stagedkd.report.results import Results
from stagedkd.report.terminal import grid_tables, results_tables
from stagedkd.stages.context import Silent

TITLE = 20.0  # points of the line above each plot


@dataclass(frozen=True)
class Drawing:
    """Plots below each other, which a notebook shows as one SVG on white."""

    plots: Sequence[Plot]

    def _repr_svg_(self) -> str | None:
        pieces: list[str] = []
        wide = top = 0.0
        for plot in self.plots:
            size = re.findall(r'(?:width|height)="([\d.]+)pt"', plot.alone)
            title = (
                f'<text x="4pt" y="{top + 14}pt" font-family="sans-serif" font-size="9pt">{escape(plot.title)}</text>'
            )
            pieces += [title, plot.alone.replace("<svg", f'<svg y="{top + TITLE}pt"', 1)]
            wide, top = max(wide, float(size[0])), top + TITLE + float(size[1])
        white = '<rect width="100%" height="100%" fill="#ffffff"/>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}pt" height="{top}pt">{white}'
        return "\n".join([head, *pieces, "</svg>"]) if pieces else None


class StageLines(Silent):
    """A listener that prints a line for each stage: `run(spec, listener=StageLines())`."""

    def stage(self, number: int, of: int, stage: Stage, state: str) -> None:
        print(f"[{number}/{of}] {stage.name}: {'in the store' if state == 'hit' else 'running'}")

    def note(self, text: str) -> None:
        print(f"note: {text}")


def curves(results: Results) -> Drawing:
    """Draw the losses of each network over its epochs."""
    from stagedkd.report.plots.curves import loss_curves

    return Drawing(loss_curves(results.curves))


def settings(grid: GridResults) -> Drawing:
    """Draw the accuracy of each setting of a grid, with its interval."""
    from stagedkd.report.plots.settings import settings_plot

    return Drawing([settings_plot(grid)])


def results_html(results: Results) -> str:
    """Return the tables of an experiment that the terminal shows, and its notes, as HTML."""
    return _page(results_tables(results), results.notes)


def grid_html(grid: GridResults) -> str:
    """Return the tables of a grid that the terminal shows, and its notes, as HTML."""
    return _page(grid_tables(grid), grid.notes)


def _page(tables: Iterable[Table], notes: Iterable[str]) -> str:
    return "\n".join([*map(as_html, tables), html_list(f"note: {note}" for note in notes)])


def as_html(table: Table) -> str:
    """Turn a table of the terminal into HTML: the same texts in the same cells, without colours."""
    heads = [_plain(column.header) for column in table.columns]
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    right = {i for i, column in enumerate(table.columns) if column.justify == "right"}
    bold = {i for i, row in enumerate(table.rows) if "bold" in str(row.style or "")}
    title = _plain(table.title).strip() if table.title else ""
    return html_table(heads, zip(*columns, strict=True), title, right, bold)


def _plain(cell: RenderableType) -> str:
    """The text of a cell. Strings are markup, as they are for the terminal."""
    if isinstance(cell, Text):
        return cell.plain
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
