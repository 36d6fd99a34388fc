"""The commands about the language: where values come from, what differs, the schema for editors, the recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagedkd.cli.common import (
    AsJson,
    Cells,
    Overrides,
    SpecPath,
    load_cell,
    notes,
    on_a_line,
    plans_of,
    runtime_of,
    say,
)
from stagedkd.errors import UsageError


def explain(
    spec: SpecPath,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Such as train.lr.", show_default=False)] = "",
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
) -> None:
    """Say of every resolved value where it stands and what it took the place of."""
    from stagedkd.report.language import explain_lines
    from stagedkd.spec.explain import explain as rows_of

    experiment = load_cell(spec, overrides, cells)
    rows = rows_of(experiment.cells[0], experiment.trees[experiment.cells[0].name], path)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
        return
    say(explain_lines(rows))
    notes(on_a_line(note) for note in experiment.notes if not path)


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A spec.", show_default=False)],
    second: Annotated[Path | None, typer.Argument(metavar="[B]", help="Another; A itself if left out.")] = None,
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
) -> None:
    """Say what differs between two specs, and which stages that invalidates. --set applies to the second."""
    from stagedkd.plan.compare import stage_changes
    from stagedkd.report.language import diff_json, diff_lines
    from stagedkd.spec.explain import differences
    from stagedkd.spec.explain import explain as rows_of

    pair = [load_cell(first, None, cells), load_cell(second or first, overrides, cells)]
    rows = [rows_of(e.cells[0], e.trees[e.cells[0].name]) for e in pair]
    plans = [next(iter(plans_of(e, runtime_of(first)).cells.values())) for e in pair]
    values, stages = differences(*rows), stage_changes(*plans)
    if as_json:
        print(json.dumps(diff_json(values, stages), indent=1))
    else:
        say(diff_lines(values, stages))


def schema() -> None:
    """Print the JSON Schema for editors: stagedkd schema > stagedkd.schema.json"""
    from stagedkd.spec.jsonschema import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))


def recipes(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The one to show.", show_default=False)] = "",
) -> None:
    """List the methods that come with the package, or show one."""
    from stagedkd.spec.fields import nearest
    from stagedkd.spec.inherit import shipped_recipes

    known = shipped_recipes()
    if name and name not in known:
        raise UsageError(f"there is no recipe '{name}'", hint=nearest(name, known))
    if name:
        print(known[name].read_text("utf-8"), end="")
        return
    texts = {found: path.read_text("utf-8").split("\n", 1)[0].lstrip("# ") for found, path in known.items()}
    say(f"{found:<{max(map(len, texts))}}  {text}" for found, text in texts.items())
