"""The commands about the language of specs: `explain`, `diff`, `recipes` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagedkd.cli import completion
from stagedkd.cli.common import (
    AsJson,
    Cells,
    Overrides,
    SpecPath,
    load_cell,
    one_line,
    plans_of,
    print_lines,
    print_notes,
    runtime_of,
)
from stagedkd.errors import UsageError


def explain(
    spec: SpecPath,
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Show only this part, such as train.lr.", show_default=False),
    ] = "",
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
) -> None:
    """Show where each resolved value comes from and what it overrides."""
    from stagedkd.report.language import explain_lines
    from stagedkd.spec.explain import explain as rows_of

    experiment = load_cell(spec, overrides, cells)
    rows = rows_of(experiment.cells[0], experiment.trees[experiment.cells[0].name], path)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
        return
    print_lines(explain_lines(rows))
    print_notes(one_line(note) for note in experiment.notes if not path)


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="Compare this spec.", show_default=False)],
    second: Annotated[
        Path | None, typer.Argument(metavar="B", help="Compare it with this spec; without it, with A itself.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Set a value of the second spec; may be repeated."),
    ] = None,
    cells: Cells = None,
    as_json: AsJson = False,
) -> None:
    """Show which values and stages differ between two specs.

    --set changes the second one, which is A if B is left out.
    """
    from stagedkd.plan.compare import stage_changes
    from stagedkd.report.language import diff_json, diff_lines
    from stagedkd.spec.explain import differences
    from stagedkd.spec.explain import explain as rows_of

    experiments = [load_cell(first, None, cells), load_cell(second or first, overrides, cells)]
    rows = [rows_of(e.cells[0], e.trees[e.cells[0].name]) for e in experiments]
    plans = [next(iter(plans_of(e, runtime_of(first)).cells.values())) for e in experiments]
    values, stages = differences(*rows), stage_changes(*plans)
    if as_json:
        print(json.dumps(diff_json(values, stages), indent=1))
    else:
        print_lines(diff_lines(values, stages))


def recipes(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Print this recipe.", show_default=False, autocompletion=completion.recipes
        ),
    ] = "",
) -> None:
    """List the published methods that come with the package, or print one."""
    from stagedkd.spec.fields import nearest
    from stagedkd.spec.inherit import shipped_recipes

    files = shipped_recipes()
    if name and name not in files:
        raise UsageError(f"there is no recipe '{name}'", hint=nearest(name, files))
    if name:
        print(files[name].read_text("utf-8"), end="")
        return
    titles = {recipe: path.read_text("utf-8").split("\n", 1)[0].lstrip("# ") for recipe, path in files.items()}
    print_lines(f"{recipe:<{max(map(len, titles))}}  {title}" for recipe, title in titles.items())


def schema(
    student: Annotated[bool, typer.Option("--student", help="That of student.json, the card of a student.")] = False,
) -> None:
    """Print the JSON Schema of specs, which editors use to complete and check them."""
    from stagedkd.spec.jsonschema import json_schema

    if student:
        from stagedkd.report.card import StudentCard

        print(json.dumps(StudentCard.model_json_schema(), indent=1, ensure_ascii=False))
        return
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
