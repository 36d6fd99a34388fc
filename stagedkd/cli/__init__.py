"""The command line. Each command parses its options, calls one function, prints the result and sets the exit code.

Exit codes: 0 is success, 1 a failed run, 2 a wrong spec or wrong arguments, 70 a fault of stagedkd itself, 129, 130 and
143 an interrupt with a checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stagedkd.cli import data as data_commands
from stagedkd.cli import demo as demo_commands
from stagedkd.cli import deploy as deploy_commands
from stagedkd.cli import docs as docs_commands
from stagedkd.cli import dvc as dvc_commands
from stagedkd.cli import language as language_commands
from stagedkd.cli import run as run_commands
from stagedkd.cli import store as store_commands
from stagedkd.cli import tune as tune_commands
from stagedkd.cli.common import (
    AsJson,
    Baseline,
    Cells,
    Command,
    DataDir,
    Overrides,
    ResultsDir,
    SpecPath,
    StoreDir,
    console,
    load_cells,
    one_line,
    plans_of,
    print_grid,
    print_lines,
    print_notes,
    print_results,
    print_tables,
    runtime_of,
)
from stagedkd.cli.failures import print_error, versions, was_interrupted
from stagedkd.errors import Origin, Problem, SpecError, UsageError
from stagedkd.plan.cpus import limit_spinning

if TYPE_CHECKING:
    from stagedkd.experiment.costs import Costs
    from stagedkd.plan.graph import Plan, Plans
    from stagedkd.plan.key import Key
    from stagedkd.plan.runtime import Runtime
    from stagedkd.spec.load import Experiment

app = typer.Typer(
    name="stagedkd",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Staged knowledge distillation for video classification, from one YAML spec.",
)


def _print_version(wanted: bool) -> None:
    """Print the versions of the package, of Python and of torch, without importing torch."""
    if wanted:
        print(versions())
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit."),
    ] = False,
) -> None:
    """Staged knowledge distillation for video classification, from one YAML spec."""


def init(
    videos: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEOS",
            help="A folder with a folder of videos for each class, or a table or list of videos.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="SPEC", help="Write the spec to this file instead of specs/<name>.yaml."),
    ] = None,
) -> None:
    """Write a small commented spec for your own videos.

    It works in a project, in your own git repository and in an empty folder, and the videos may be anywhere.
    """
    from stagedkd.experiment.costs import costs_of
    from stagedkd.experiment.init import init_project

    project = init_project(videos, out)
    print_lines(project.lines)
    runtime = runtime_of(project.spec)
    plans = plans_of(load_cells(project.spec, None, None), runtime)
    print_lines([costs_of(plans, plans.unique, runtime, project.clips).text])
    print_lines([f"next: {Origin(str(project.spec)).command('run')}"])


def check(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Build all networks on the meta device; list their sizes and pairs.")
    ] = False,
    form: Annotated[
        Literal["text", "json"], typer.Option("--format", help="Print text, or JSON for editors.")
    ] = "text",
) -> None:
    """Check a spec and every cell of its grid, and list every problem with its place.

    With --shapes it also lists parameters, FLOPs and pairs.
    """
    try:
        experiment = load_cells(spec, overrides, cells)
    except SpecError as error:
        if form == "json":
            _print_problems(error.problems)
            raise typer.Exit(error.exit_code) from None
        raise
    plans = plans_of(experiment, runtime_of(spec))
    if form == "json":
        _print_problems(experiment.notes)
        return
    for problem in experiment.notes:
        print_lines([problem.render(), ""])
    print_notes(_plan_notes(experiment, plans))
    for cell_plan in plans.cells.values() if shapes else ():
        _print_shapes(cell_plan, runtime_of(spec))
    count = f"{len(plans.cells)} cells, {len(plans.unique)} unique" if plans.is_grid else f"{len(plans.unique)}"
    print_lines([f"{spec}: {count} stages, no problem found"])


def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
    store: StoreDir = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show what each phase trains, freezes, runs, keeps and compares.")
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Show what the stages that the store lacks will take on this machine.")
    ] = False,
) -> None:
    """List the stages of a spec, or the cells of a grid, and what the store has of them.

    A stage is a hit (the store has it), resumable, a miss (and why), or unlocked (its key is not known before the data
    are locked). For a grid, it says what sharing saves.
    """
    from stagedkd.report.phases import phase_lines
    from stagedkd.report.terminal import grid_plan_lines, plan_json, plan_table
    from stagedkd.store.store import Store
    from stagedkd.store.why import why_miss

    runtime = runtime_of(spec, store=store)
    experiment = load_cells(spec, overrides, cells)
    plans, artifacts = plans_of(experiment, runtime), Store(runtime.folder("store"))
    states = {key: artifacts.state(stage) for key, stage in plans.unique.items()}
    single = len(plans.cells) == 1
    stored = list(artifacts.manifests()) if single and "miss" in states.values() else []
    first = next(iter(plans.cells.values()))
    why = {s.name: why_miss(first, s, stored) for s in first.stages if single and states[s.identity] == "miss"}
    costs = _costs(plans, states, runtime) if cost else None
    if as_json:
        values = plan_json(plans, states, why) | ({"cost": costs.as_json()} if costs else {})
        print(json.dumps(values, indent=1))
        return
    if single:
        console().print(plan_table(first, states, why))
    else:
        print_lines(grid_plan_lines(plans, states))
    if verbose:
        from stagedkd.experiment.preflight import hop_keepings

        print_lines(phase_lines(plans, hop_keepings(plans, runtime)))
    if costs:
        run_commands.print_costs(costs)
    if "unlocked" in states.values():
        missing = "stagedkd.lock lacks data or weights of this spec, so some keys are not known"
        print_notes([f"{missing}; on the machine that has them, run: {experiment.origin.command('lock')}"])
    print_notes([*map(one_line, experiment.notes), *_plan_notes(experiment, plans)])


def show(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
    store: StoreDir = None,
    baseline: Baseline = "",
) -> None:
    """Show the results of a spec or a grid that has run."""
    from stagedkd.report import formats, terminal, write
    from stagedkd.report.collect import collect
    from stagedkd.report.grid import collect_grid
    from stagedkd.report.looks import record_looks
    from stagedkd.store.store import Store

    runtime = runtime_of(spec, store=store)
    plans, artifacts = plans_of(load_cells(spec, overrides, cells), runtime), Store(runtime.folder("store"))
    _check_baseline(plans, baseline)
    if len(plans.cells) == 1:
        results = collect(next(iter(plans.cells.values())), artifacts)
        values, tables, notes = write.as_json(results), terminal.results_tables(results, console().width), ()
        shown = [results.plan]
    else:
        results = collect_grid(plans, artifacts, baseline)
        values, tables, notes = formats.as_json(results), terminal.grid_tables(results), results.comparison_notes
        shown = [plans.cells[name] for name in results.cells]
    looks = filter(None, [record_looks(shown, Path(runtime.root)).note])
    if as_json:
        print(json.dumps(values, indent=1))
    else:
        print_tables(tables)
        print_notes([*notes, *looks])


def report(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    store: StoreDir = None,
    results: ResultsDir = None,
    form: Annotated[
        Literal["html", "csv", "latex"],
        typer.Option("--format", help="Write all files of the report (html), or only print csv or latex."),
    ] = "html",
    baseline: Baseline = "",
) -> None:
    """Write the report of a spec or a grid to results/<name>/ and print its tables.

    `stagedkd run` does so at its end.
    """
    from stagedkd.report import formats
    from stagedkd.report.grid import collect_grid
    from stagedkd.report.looks import record_looks
    from stagedkd.store.store import Store

    runtime = runtime_of(spec, store=store, results=results)
    plans = plans_of(load_cells(spec, overrides, cells), runtime)
    _check_baseline(plans, baseline)
    if form != "html":
        grid_results = collect_grid(plans, Store(runtime.folder("store")), baseline)
        record_looks([plans.cells[name] for name in grid_results.cells], Path(runtime.root))
        print({"csv": formats.as_csv, "latex": formats.as_latex}[form](grid_results), end="")
        return
    if len(plans.cells) == 1:
        print_results(next(iter(plans.cells.values())), runtime, wrote=True)
    else:
        print_grid(plans, runtime, baseline)


def lock(spec: SpecPath, overrides: Overrides = None, cells: Cells = None, data_dir: DataDir = None) -> None:
    """Write stagedkd.lock, to accept the data and weights as they are on disk.

    `stagedkd run` writes it, too, for data that it does not list yet; for data that have changed, only this does.
    """
    from stagedkd.experiment.locking import lock_specs

    specs = [cell.spec for cell in load_cells(spec, overrides, cells).cells]
    _, lines = lock_specs(specs, runtime_of(spec, data_dir=data_dir), accept=True)
    print_lines(lines or ["stagedkd.lock is up to date"])


def fetch(spec: SpecPath, overrides: Overrides = None, cells: Cells = None) -> None:
    """Download the torchvision weights that a spec names, and lock them.

    For machines that later have no network.
    """
    from stagedkd.experiment.locking import fetch_weights

    specs = [cell.spec for cell in load_cells(spec, overrides, cells).cells]
    print_lines(fetch_weights(specs, runtime_of(spec)) or ["the spec names no weights"])


# `stagedkd --help` lists the commands by task, and in this order: what a user needs first comes first.
PANELS: Mapping[str, tuple[Callable[..., None] | tuple[str, typer.Typer], ...]] = {
    "Every day": (init, check, plan, run_commands.run, show, report, docs_commands.docs),
    "Use a student": (
        deploy_commands.predict,
        deploy_commands.export,
        deploy_commands.bench,
        demo_commands.demo,
        deploy_commands.publish,
    ),
    "Prepare and understand an experiment": (
        tune_commands.tune,
        run_commands.rehearse,
        language_commands.explain,
        language_commands.diff,
        language_commands.recipes,
        ("data", data_commands.app),
        lock,
        fetch,
    ),
    "Keep and rebuild results": (("store", store_commands.app), store_commands.reproduce, ("dvc", dvc_commands.app)),
    "For editors and DVC": (language_commands.schema, dvc_commands.stage),
}
for panel, commands in PANELS.items():
    for command in commands:
        if isinstance(command, tuple):
            app.add_typer(command[1], name=command[0], rich_help_panel=panel)
        else:
            app.command(cls=Command, rich_help_panel=panel)(command)


def _costs(plans: Plans, states: Mapping[Key, str], runtime: Runtime) -> Costs:
    from stagedkd.experiment.costs import costs_of

    return costs_of(plans, {key for key, state in states.items() if state != "hit"}, runtime)


def _check_baseline(plans: Plans, baseline: str) -> None:
    if baseline and len(plans.cells) == 1:
        raise UsageError("--baseline is for grids of several cells", hint="leave out --baseline")


def _print_shapes(plan: Plan, runtime: Runtime) -> None:
    from stagedkd.experiment.preflight import preflight
    from stagedkd.report.terminal import shapes_tables

    shapes = preflight(plan, Path(runtime.root))
    networks = [(name, n.params, n.trunk_params, n.flops) for name, n in shapes.networks.items()]
    pairs = [(p.hop, p.number, p.student, p.teacher, p.grid) for p in shapes.pairs]
    print_tables(shapes_tables(networks, pairs))


def _print_problems(problems: Iterable[Problem]) -> None:
    rows = [problem.as_json() for problem in problems]
    print(json.dumps({"ok": all(row["severity"] != "error" for row in rows), "problems": rows}, indent=1))


def _plan_notes(experiment: Experiment, plans: Plans) -> list[str]:
    """The notes of the plans, each once, without those that the spec's own notes show with a place."""
    shown = {problem.message for problem in experiment.notes}
    return [note for note in dict.fromkeys(n for p in plans.cells.values() for n in p.notes) if note not in shown]


def main() -> None:
    """Run the command line. Our own errors are printed without a traceback, unless -v asks for one."""
    limit_spinning()  # before a command loads torch
    try:
        code = app(prog_name="stagedkd", standalone_mode=False)
        sys.stdout.flush()
        if isinstance(code, int):  # the code of a typer.Exit
            sys.exit(code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has closed the pipe
        sys.exit(141)
    except Exception as error:
        if was_interrupted(error):
            sys.exit(130)
        if (show_usage := getattr(error, "show", None)) is not None:  # click's usage errors print themselves
            show_usage()
            sys.exit(getattr(error, "exit_code", 2))
        sys.exit(print_error(error))
