"""Options that several commands take, the commands on a spec, and functions to load a spec and to print."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from stagedkd.cli import completion
from stagedkd.errors import Origin, StagedkdError, UsageError, about, printable
from stagedkd.launch import Engine as EngineName

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stagedkd.errors import Problem
    from stagedkd.plan.graph import Plan, Plans
    from stagedkd.plan.runtime import Runtime
    from stagedkd.report.progress import RunProgress
    from stagedkd.spec.load import Experiment

SpecPath = Annotated[
    Path,
    typer.Argument(metavar="SPEC", help="Read this YAML spec.", show_default=False, autocompletion=completion.specs),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set a value of the spec; may be repeated.")
]
Cells = Annotated[
    list[str] | None, typer.Option("--cell", metavar="axis=label,...", help="Pick cells of a grid; may be repeated.")
]
StoreDir = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Use this folder as the store.")]
ResultsDir = Annotated[Path | None, typer.Option("--results", metavar="DIR", help="Write reports to this folder.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Look for data sets in this folder.")]
Device = Annotated[str | None, typer.Option("--device", help="Train on this device: auto, cpu, cuda or mps.")]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="Split each training over this many processes, one per GPU; works on CPUs too."),
]
Engine = Annotated[
    EngineName,
    typer.Option("--engine", help="Run stages one by one in this process, or many at once with Parsl."),
]
ClusterFile = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="Read from this YAML file where --engine parsl starts its workers."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=0, help="Use this many CPU threads; 0 means all that it may use."),
]


def _jobs(text: str) -> int | str:
    """Read the value of --jobs: a number, or a word, which the runtime checks."""
    return int(text) if text.isdecimal() else text


Jobs = Annotated[
    Any,
    typer.Option(
        "--jobs", metavar="N|auto", parser=_jobs, help="Run this many independent stages at once, each in a process."
    ),
]
Baseline = Annotated[
    str,
    typer.Option(
        "--baseline",
        metavar="axis=label,...",
        help="Compare the rows of a grid with this one, or, by labels of some axes, each with the one that has these.",
    ),
]
NoRehearsal = Annotated[
    bool, typer.Option("--no-rehearsal", help="Do not rehearse a run that will take over ten minutes.")
]
Log = Annotated[
    list[str] | None,
    typer.Option("--log", metavar="TOOL", help="Log with tensorboard, wandb, mlflow or trackio; may be repeated."),
]
NoDvc = Annotated[bool, typer.Option("--no-dvc", help="Do not tell DVC about the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more, with full tracebacks.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors and results.")]

REPEATED = {
    "overrides": "--set",
    "cells": "--cell",
}  # a hint repeats these options, and those folders that its command takes
FOLDERS = {"data_dir": "--data-dir", "store": "--store", "results": "--results"}


class Command(TyperCommand):
    """A command whose errors name the spec that it was called with, and the options that its hints must repeat."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with about(Origin()):
                return super().invoke(ctx)
        except StagedkdError as error:
            error.origin = origin_of(ctx) or error.origin
            raise


def origin_of(ctx: typer.Context) -> Origin | None:
    """Return the spec that a command was called with, with the options that hints repeat; None if it takes no spec."""
    if not isinstance(spec := ctx.params.get("spec"), Path):
        return None
    options = [
        part for name, flag in REPEATED.items() for value in ctx.params.get(name) or () for part in (flag, value)
    ]
    given = {name: str(value) for name in FOLDERS if (value := ctx.params.get(name)) is not None}
    group = ctx.find_root().command
    commands = group.commands if isinstance(group, TyperGroup) else {}
    further = {
        name: tuple(
            part
            for option in command.params
            if (value := given.get(str(option.name)))
            for part in (FOLDERS[str(option.name)], value)
        )
        for name, command in commands.items()
    }
    return Origin(str(spec), tuple(options), further)


def check_engine(engine: EngineName, cluster: Path | None, jobs: int | str | None) -> None:
    """Check that the options of the engine go together. Raises UsageError: they do not."""
    if cluster is not None and engine != "parsl":
        raise UsageError("--cluster needs --engine parsl", hint="add --engine parsl, or leave out --cluster")
    if jobs is not None and engine != "in-process":
        hint = f"set workers in the file of --cluster, or leave out --engine {engine}"
        raise UsageError(f"--jobs counts processes on this machine, not those of --engine {engine}", hint=hint)


def load_cells(path: Path, overrides: list[str] | None, cells: list[str] | None) -> Experiment:
    """Load the experiment of a spec: all cells of its grid, or those that `--cell` picks."""
    from stagedkd.spec.load import load_experiment

    return load_experiment(path, overrides or (), cells or ())


def load_cell(path: Path, overrides: list[str] | None, cells: list[str] | None) -> Experiment:
    """Load the experiment of a spec as one cell; for a grid, `--cell` must pick it."""
    from stagedkd.spec.load import load_one

    return load_one(path, overrides or (), cells or ())


def runtime_of(spec: Path, **overrides: Any) -> Runtime:
    """Load the runtime of the project that a spec belongs to."""
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.spec.load import specs_root

    return load_runtime(specs_root(spec), **overrides)


def plans_of(experiment: Experiment, runtime: Runtime) -> Plans:
    """Compile the plans of an experiment with the project's lock."""
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import read_lock

    return compile_experiment(experiment, read_lock(runtime.lock_path))


def print_lines(lines: Iterable[str]) -> None:
    """Print plain lines."""
    for line in lines:
        print(printable(line))


def print_notes(notes: Iterable[str]) -> None:
    """Print notes, one per line."""
    print_lines(f"note: {note}" for note in notes)


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables."""
    for table in tables:
        console().print(table)


def console(err: bool = False) -> Console:
    """Return the console that tables are printed on; it is 160 characters wide where it is not a terminal. It shows
    control characters in a text as \\x1b and the like: names come from files of others, and a terminal would obey."""
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    default = PrintableConsole(stderr=err)
    return default if default.is_terminal else PrintableConsole(stderr=err, width=160)


def progress(level: int = 0) -> RunProgress:
    """Return a listener that shows progress on the error stream; `level` is -1 for quiet, 1 for verbose."""
    from stagedkd.report.progress import RunProgress

    return RunProgress(console(err=True), level)


def print_results(plan: Plan, runtime: Runtime, *, wrote: bool) -> bool:
    """Print the tables of a plan that has run. Write its report if the run `wrote` an artifact, or if the report on
    disk is not that of this plan. Returns whether the report was written."""
    from stagedkd.report.collect import collect
    from stagedkd.report.terminal import results_tables
    from stagedkd.report.write import bench_problem, is_written, results_folder, write_report
    from stagedkd.spec.inherit import tidy_path
    from stagedkd.store.store import Store

    folder = results_folder(plan, runtime)
    page = folder / "report.html"
    wrote = wrote or not is_written(plan, runtime)
    results = write_report(plan, runtime) if wrote else collect(plan, Store(runtime.folder("store")))
    print_tables(results_tables(results, console().width))
    print_notes(results.notes)
    print_looks([plan], runtime)
    print_notes(filter(None, [bench_problem(plan, runtime)]))
    print_lines([f"top-1 on the {results.split} split; report: {page}"])
    command = shlex.join(["stagedkd", "predict", str(tidy_path(folder)), "VIDEO"])
    print_lines([f"next: open the report, or try the student: {command}"])
    return wrote


def print_grid(plans: Plans, runtime: Runtime, baseline: str = "", *, wrote: bool = True) -> bool:
    """Write the report of the finished cells and print its tables. Where the run `wrote` no artifact, a report with the
    same results stays. Returns whether all cells are in it."""
    from stagedkd.report.terminal import grid_tables
    from stagedkd.report.write import report_grid, results_folder

    results = report_grid(plans, runtime, baseline, anew=wrote)
    print_tables(grid_tables(results))
    print_notes(note for note in results.notes if not note.startswith("no result for"))
    print_looks([plans.cells[name] for name in results.cells], runtime)
    page = results_folder(plans, runtime) / "report.html"
    print_lines([f"top-1 in percent on the {results.split} split, 95% intervals ({results.intervals}); report: {page}"])
    return not results.missing


def print_looks(plans: Iterable[Plan], runtime: Runtime) -> None:
    """Record that results of these plans on the test split are shown, and print how many were."""
    from stagedkd.report.looks import record_looks

    print_notes(filter(None, [record_looks(plans, Path(runtime.root)).note]))


def one_line(problem: Problem) -> str:
    """Return a problem as a note of one line."""
    hint = f" ({problem.hint})" if problem.hint else ""
    return f"{problem.message}{hint}" + (f" at {problem.place}" if problem.place else "")
