"""What notebooks show, and the notebook that comes with the project."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import unescape
from pathlib import Path

import nbformat
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.notebook import NOTEBOOK, code_digest, execute, text_of
from stagedkd.experiment.run import Outcome
from stagedkd.html import html_list, html_table
from stagedkd.plan.graph import Plans
from stagedkd.report.collect import collect
from stagedkd.report.grid import collect_grid
from stagedkd.report.notebook import as_html, curves, settings
from stagedkd.report.terminal import grid_tables, results_tables
from stagedkd.store.store import Store
from tests.conftest import REPO
from tests.pages import make_grid

SHRUNK = [
    *("data.train=64", "data.val=16", "data.test=16", "clip.size=16"),
    *("train.warmup_epochs=0", "teacher.epochs=1", "student.epochs=4"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plans, Store]:
    return make_grid(tmp_path_factory.mktemp("grid"))


def cells(html: str) -> list[list[str]]:
    """The texts of the rows of all tables."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [[unescape(text) for text in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def printed(tables: Iterable[Table]) -> list[str]:
    """The lines of the tables in a terminal that is wide enough, without titles."""
    console = Console(width=400, file=io.StringIO(), color_system=None)
    for table in tables:
        table.title = None
        console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def squeezed(lines: Iterable[str]) -> list[str]:
    return ["".join(line.split()) for line in lines]


def test_a_notebook_shows_the_cells_of_the_terminal(made: tuple[Plans, Store]) -> None:
    plans, store = made
    grid = collect_grid(plans, store)
    one = collect(next(iter(plans.cells.values())), store)
    for shown, tables in ((grid, grid_tables(grid)), (one, results_tables(one))):
        html = shown._repr_html_()
        assert squeezed("".join(row) for row in cells(html)) == squeezed(printed(tables))
        assert all(f"note: {note}" in unescape(html) for note in shown.notes) and shown.notes


def test_a_plan_and_an_outcome_show_their_stages(made: tuple[Plans, Store]) -> None:
    plan = next(iter(made[0].cells.values()))
    rows = cells(plan._repr_html_())
    assert [row[0] for row in rows[1:]] == [stage.name for stage in plan.stages]
    assert rows[1][2] == plan.stages[0].identity.short
    outcome = Outcome(plan, {}, ("teacher",), None)  # type: ignore[arg-type]
    states = {row[0]: row[2] for row in cells(outcome._repr_html_())[1:]}
    assert states.pop("teacher") == "made now" and set(states.values()) == {"in the store"}


def test_no_text_becomes_markup() -> None:
    evil = "<script>alert('&')</script>"
    table = Table("head", title=evil.replace("[", r"\["))
    table.add_row(evil)
    for html in (as_html(table), html_table([evil], [[evil]], evil), html_list([evil])):
        assert "<script" not in html and evil in unescape(html)


def test_markup_of_the_terminal_is_no_text() -> None:
    table = Table("head", title="[bold]title[/]")
    table.add_row(r"[green]90.0[/] \[80 to 95]", style="bold")
    html = as_html(table)
    assert ">90.0 [80 to 95]</td>" in html and ">title</caption>" in html and 'font-weight: bold">' in html


def test_plots_are_drawn_as_svg(made: tuple[Plans, Store]) -> None:
    grid = collect_grid(*made)
    drawn = settings(grid)._repr_svg_()
    assert drawn is not None and drawn.startswith("<svg")
    assert curves(next(iter(grid.cells.values())))._repr_svg_() is None, "these artifacts have no events"


def test_the_outputs_of_the_notebook_are_those_of_its_code() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata["stagedkd"]["code"] == code_digest(notebook), "run: make notebook"
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    table = next(
        row
        for cell in code
        for output in cell.outputs
        for row in cells(output.get("data", {}).get("text/html", ""))
        if row[0] == "student" and row[1].endswith("%")
    )
    assert table[3] == "14,612", "it is a full run: README has the same number of parameters"


def test_the_notebook_names_no_machine_and_no_time() -> None:
    text = NOTEBOOK.read_text("utf-8")
    words = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(
        r"(/home|/root|/tmp|/work|/Users|[A-Z]:\\\\)\b|its latency|\d ms\b|done in|clips/s|ETA \d|Intel|AMD|Xeon", words
    )
    assert "timestamp" not in text and text == text_of(nbformat.reads(text, as_version=4))


def test_the_links_of_the_notebook_lead_somewhere() -> None:
    links = re.findall(
        r"\]\(([^)#]+)",
        "".join(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "markdown"),
    )
    assert links and not [link for link in links if not (REPO / "docs" / link).exists()]


@pytest.mark.slow
def test_the_notebook_runs_in_its_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.delenv("STAGEDKD_DATA", raising=False)
    notebook = execute(tmp_path / "project", SHRUNK)
    committed = nbformat.read(NOTEBOOK, as_version=4)
    same = [a.source == b.source for a, b in zip(notebook.cells, committed.cells, strict=True)]
    assert same.count(False) == 1, "all but the parameters are the committed cells"
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert [next(kind for kind in ("text/html", "image/svg+xml", "image/png") if kind in data) for data in shown] == [
        *("text/html", "text/html", "image/svg+xml", "image/png")
    ]
    assert str(tmp_path) not in text_of(notebook)
    assert not list((tmp_path / "project" / "docs").iterdir()), "all that it writes is in the project's folders"
