"""The command line: parse, call one function, render, exit code.

0: done. 1: the run failed. 2: the spec or the arguments are wrong. 130, 143: interrupted, with a checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stagedkd.cli import data as data_commands
from stagedkd.cli import dvc as dvc_commands
from stagedkd.cli import language as language_commands
from stagedkd.cli import store as store_commands
from stagedkd.cli.common import (
    AsJson,
    Baseline,
    Cells,
    ClusterFile,
    DataDir,
    Device,
    Engine,
    Gpus,
    NoDvc,
    Overrides,
    Quiet,
    ResultsDir,
    SpecPath,
    StoreDir,
    Threads,
    Verbose,
    console,
    load_cells,
    notes,
    on_a_line,
    plans_of,
    print_grid,
    print_results,
    progress,
    runtime_of,
    say,
    tables,
)
from stagedkd.errors import Problem, SpecError, StagedkdError, TrainingError, UsageError

if TYPE_CHECKING:
    from stagedkd.experiment.run import GridOutcome
    from stagedkd.plan.graph import Plan, Plans
    from stagedkd.plan.runtime import Runtime
    from stagedkd.spec.load import Experiment
app = typer.Typer(
    name="stagedkd",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Staged knowledge distillation for video classification, from one YAML spec.",
)
app.add_typer(data_commands.app, name="data")
app.add_typer(dvc_commands.app, name="dvc")
app.command()(dvc_commands.stage)
app.add_typer(store_commands.app, name="store")
app.command()(store_commands.reproduce)


@app.command()
def check(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Build all networks on the meta device.")] = False,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="text, or json for editors.")] = "text",
) -> None:
    """Check a spec and every cell of its grid: every fault at once, each with its place."""
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
        say([problem.render(), ""])
    notes(_plan_notes(experiment, plans))
    for made in plans.cells.values() if shapes else ():
        _print_shapes(made, runtime_of(spec))
    count = f"{len(plans.cells)} cells, {len(plans.unique)} unique" if plans.is_grid else f"{len(plans.unique)}"
    say([f"{spec}: {count} stages, no fault found"])


@app.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
    store: StoreDir = None,
    verbose: Verbose = False,
) -> None:
    """List the stages, their keys, and whether the store has them; of a grid its cells, and what sharing saves. With -v
    what each phase trains, freezes, runs and compares."""
    from stagedkd.report.phases import phase_lines
    from stagedkd.report.terminal import grid_plan_lines, plan_json, plan_table
    from stagedkd.store.store import Store
    from stagedkd.store.why import why_miss

    runtime = runtime_of(spec, store=store)
    experiment = load_cells(spec, overrides, cells)
    plans, kept = plans_of(experiment, runtime), Store(runtime.folder("store"))
    states = {key: kept.state(stage) for key, stage in plans.unique.items()}
    single = len(plans.cells) == 1
    stored = list(kept.manifests()) if single and "miss" in states.values() else []
    made = next(iter(plans.cells.values()))
    why = {s.name: why_miss(made, s, stored) for s in made.stages if single and states[s.identity] == "miss"}
    if as_json:
        print(json.dumps(plan_json(plans, states, why), indent=1))
        return
    if single:
        console().print(plan_table(made, states, why))
    else:
        say(grid_plan_lines(plans, states))
    if verbose:
        say(phase_lines(plans))
    if "unlocked" in states.values():
        notes(["keys wait for stagedkd.lock: stagedkd lock SPEC writes it where the data are"])
    notes([*map(on_a_line, experiment.notes), *_plan_notes(experiment, plans)])


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    store: StoreDir = None,
    results: ResultsDir = None,
    data_dir: DataDir = None,
    device: Device = None,
    gpus: Gpus = None,
    threads: Threads = None,
    engine: Engine = "in-process",
    cluster: ClusterFile = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    no_dvc: NoDvc = False,
) -> None:
    """Run every stage that the store does not have, then report, and tell DVC where the project uses it."""
    from stagedkd.experiment.run import run_experiment

    experiment = load_cells(spec, overrides, cells)
    if cluster is not None and engine != "parsl":
        raise UsageError("--cluster is for --engine parsl", hint="add --engine parsl, or leave it out")
    knobs = {"device": device, "gpus": gpus, "threads": threads, "cluster": cluster}
    runtime = runtime_of(spec, store=store, results=results, data_dir=data_dir, **knobs)
    with progress(verbose - quiet) as shown:
        for note in experiment.notes:
            if note.severity == "note":
                shown.note(on_a_line(note))
        outcome = run_experiment(experiment, runtime, shown, engine)
    if not outcome.ran and not outcome.failed:
        console(err=True).print("nothing to do: every stage is in the store", highlight=False)
    wrote = False
    if len(outcome.plans.cells) == 1 and outcome.finished:
        wrote = print_results(next(iter(outcome.finished.values())).plan, runtime, wrote=bool(outcome.ran))
    elif outcome.finished:
        wrote = print_grid(outcome.plans, runtime) and bool(outcome.ran)
    if not no_dvc:
        dvc_commands.commit_run(outcome, None if overrides or cells else spec, wrote=wrote)
    _refuse_failed(outcome)


@app.command()
def show(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    as_json: AsJson = False,
    store: StoreDir = None,
    baseline: Baseline = "",
) -> None:
    """Show the results of a spec or a grid that has run."""
    from stagedkd.report import grid, terminal, write
    from stagedkd.report.collect import collect
    from stagedkd.store.store import Store

    runtime = runtime_of(spec, store=store)
    plans, kept = plans_of(load_cells(spec, overrides, cells), runtime), Store(runtime.folder("store"))
    _check_baseline(plans, baseline)
    if len(plans.cells) == 1:
        found = collect(next(iter(plans.cells.values())), kept)
        values, shown, told = write.as_json(found), terminal.results_tables(found), ()
    else:
        several = grid.collect_grid(plans, kept, baseline)
        values, shown, told = grid.as_json(several), terminal.grid_tables(several), several.comparison_notes
    if as_json:
        print(json.dumps(values, indent=1))
    else:
        tables(shown)
        notes(told)


@app.command()
def report(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    store: StoreDir = None,
    results: ResultsDir = None,
    form: Annotated[
        Literal["html", "csv", "latex"],
        typer.Option("--format", help="html writes all files of the report; csv and latex print."),
    ] = "html",
    baseline: Baseline = "",
) -> None:
    """Write results/<name>/ from the store: report.html, metrics.json, and of a grid cells.csv and table.tex. Of a grid
    every row is compared with the first one, or with --baseline."""
    from stagedkd.report import formats
    from stagedkd.report.grid import collect_grid
    from stagedkd.store.store import Store

    runtime = runtime_of(spec, store=store, results=results)
    plans = plans_of(load_cells(spec, overrides, cells), runtime)
    _check_baseline(plans, baseline)
    if form != "html":
        found = collect_grid(plans, Store(runtime.folder("store")), baseline)
        print({"csv": formats.as_csv, "latex": formats.as_latex}[form](found), end="")
        return
    if len(plans.cells) == 1:
        print_results(next(iter(plans.cells.values())), runtime, wrote=True)
    else:
        print_grid(plans, runtime, baseline)


@app.command()
def lock(spec: SpecPath, overrides: Overrides = None, cells: Cells = None, data_dir: DataDir = None) -> None:
    """Write stagedkd.lock: accept data and weights as they are on the disk."""
    from stagedkd.experiment.locking import lock_specs

    specs = [cell.spec for cell in load_cells(spec, overrides, cells).cells]
    _, lines = lock_specs(specs, runtime_of(spec, data_dir=data_dir), accept=True)
    say(lines or ["stagedkd.lock is up to date"])


@app.command()
def fetch(spec: SpecPath, overrides: Overrides = None, cells: Cells = None) -> None:
    """Bring the torchvision weights that a spec names, on a machine that has the network, and lock them."""
    from stagedkd.experiment.locking import fetch_weights

    specs = [cell.spec for cell in load_cells(spec, overrides, cells).cells]
    say(fetch_weights(specs, runtime_of(spec)) or ["the spec names no weights"])


app.command()(language_commands.explain)
app.command()(language_commands.diff)
app.command()(language_commands.schema)
app.command()(language_commands.recipes)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Videos, one folder a class.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", metavar="SPEC", help="Where: specs/<folder>.yaml.")] = None,
) -> None:
    """Write a small commented spec for a folder of one's own videos, that runs as it stands."""
    from stagedkd.experiment.init import init_project

    project = init_project(folder, out)
    say(project.lines)
    say([f"next: stagedkd run {project.spec}"])


def _check_baseline(plans: Plans, baseline: str) -> None:
    if baseline and len(plans.cells) == 1:
        raise UsageError("--baseline is for grids of several cells", hint="leave it out")


def _refuse_failed(outcome: GridOutcome) -> None:
    """The cells that failed make the command fail."""
    if outcome.failed and len(outcome.plans.cells) == 1:
        raise next(iter(outcome.failed.values()))
    if outcome.failed:
        rows = "\n".join(f"  {name}: {error.message}" for name, error in outcome.failed.items())
        message = f"{len(outcome.failed)} of {len(outcome.plans.cells)} cells failed:\n{rows}"
        raise TrainingError(message, hint="mend them; the same command runs what is missing")


def _print_shapes(plan: Plan, runtime: Runtime) -> None:
    from stagedkd.experiment.preflight import preflight
    from stagedkd.report.terminal import shapes_tables

    found = preflight(plan, Path(runtime.root))
    networks = [(name, n.params, n.trunk_params, n.flops) for name, n in found.networks.items()]
    pairs = [(p.hop, p.number, p.student, p.teacher, p.grid) for p in found.pairs]
    for table in shapes_tables(networks, pairs):
        console().print(table)


def _print_problems(problems: Iterable[Problem]) -> None:
    listed = [problem.as_json() for problem in problems]
    print(json.dumps({"ok": all(p["severity"] != "error" for p in listed), "problems": listed}, indent=1))


def _plan_notes(experiment: Experiment, plans: Plans) -> list[str]:
    """The notes of the plans, each once, without those that the spec's own notes show with a place."""
    told = {problem.message for problem in experiment.notes}
    return [note for note in dict.fromkeys(n for p in plans.cells.values() for n in p.notes) if note not in told]


def main() -> None:
    """Entry point: errors of ours are rendered, never traced, unless -v asks."""
    try:
        code = app(standalone_mode=False)
        if isinstance(code, int):  # of a typer.Exit
            sys.exit(code)
    except StagedkdError as error:
        print(error.render(), file=sys.stderr)
        if {"-v", "--verbose"} & set(sys.argv) and error.__cause__ is not None:
            raise
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
        sys.exit(141)
    except Exception as error:
        show_usage = getattr(error, "show", None)  # click's usage errors print themselves
        if show_usage is None:
            raise
        show_usage()
        sys.exit(getattr(error, "exit_code", 2))
