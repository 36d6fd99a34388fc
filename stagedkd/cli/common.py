"""What all commands share: options, loading a spec, and printing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagedkd.launch import Engine as EngineName

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stagedkd.errors import Problem
    from stagedkd.plan.graph import Plan, Plans
    from stagedkd.plan.runtime import Runtime
    from stagedkd.report.terminal import Shown
    from stagedkd.spec.load import Experiment

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML spec.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set a value of the spec.")]
Cells = Annotated[list[str] | None, typer.Option("--cell", metavar="axis=label,...", help="Pick cells of a grid.")]
StoreDir = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Folder of artifacts.")]
ResultsDir = Annotated[Path | None, typer.Option("--results", metavar="DIR", help="Folder of reports.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Root of the data sets.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Processes that share each training, one a GPU; on the CPU, too.")
]
Engine = Annotated[EngineName, typer.Option("--engine", help="parsl: many stages at once, by workers of Parsl's.")]
ClusterFile = Annotated[
    Path | None, typer.Option("--cluster", metavar="FILE", help="YAML that says where --engine parsl has its workers.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="Threads of torch; 0: all cores.")]
Baseline = Annotated[
    str, typer.Option("--baseline", metavar="axis=label,...", help="The row of a grid to compare the others with.")
]
NoDvc = Annotated[bool, typer.Option("--no-dvc", help="Do not tell DVC of what is in the store now.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; tracebacks in full.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say errors and results only.")]


def load_cells(path: Path, overrides: list[str] | None, cells: list[str] | None) -> Experiment:
    """The experiment of a spec: all cells of its grid, or those that `--cell` picks."""
    from stagedkd.spec.load import load_experiment

    return load_experiment(path, overrides or (), cells or ())


def load_cell(path: Path, overrides: list[str] | None, cells: list[str] | None) -> Experiment:
    """The experiment of a spec of which one cell is picked."""
    from stagedkd.spec.load import load_one

    return load_one(path, overrides or (), cells or ())


def runtime_of(spec: Path, **overrides: Any) -> Runtime:
    """The runtime of a spec's project."""
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.spec.load import specs_root

    return load_runtime(specs_root(spec), **overrides)


def plans_of(experiment: Experiment, runtime: Runtime) -> Plans:
    """The plans of an experiment, compiled with the project's lock."""
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import read_lock

    return compile_experiment(experiment, read_lock(runtime.lock_path))


def say(lines: Iterable[str]) -> None:
    """Print plain lines."""
    for line in lines:
        print(line)


def notes(texts: Iterable[str]) -> None:
    """Print notes."""
    say(f"note: {text}" for text in texts)


def tables(made: Iterable[Table]) -> None:
    """Print tables."""
    for table in made:
        console().print(table)


def console(err: bool = False) -> Console:
    """Where tables go; wide where it is no terminal."""
    from rich.console import Console

    made = Console(stderr=err)
    return made if made.is_terminal else Console(stderr=err, width=160)


def progress(level: int = 0) -> Shown:
    """Progress on the error stream."""
    from stagedkd.report.terminal import Shown

    return Shown(console(err=True), level)


def print_results(plan: Plan, runtime: Runtime, *, wrote: bool) -> bool:
    """Print the tables of a plan that has run; write its report where a run `wrote` something or the one there is not
    that of this plan. Returns whether it was written."""
    from stagedkd.report.collect import collect
    from stagedkd.report.terminal import results_tables
    from stagedkd.report.write import is_written, results_folder, write_report
    from stagedkd.store.store import Store

    page = results_folder(plan, runtime) / "report.html"
    wrote = wrote or not is_written(plan, runtime)
    found = write_report(plan, runtime) if wrote else collect(plan, Store(runtime.folder("store")))
    tables(results_tables(found))
    notes(found.notes)
    say([f"top-1 on the {found.split} split; report: {page}"])
    return wrote


def print_grid(plans: Plans, runtime: Runtime, baseline: str = "") -> bool:
    """Write the report of what is there, and print its tables. Returns whether all cells are in it."""
    from stagedkd.report.terminal import grid_tables
    from stagedkd.report.write import report_grid, results_folder

    found = report_grid(plans, runtime, baseline)
    tables(grid_tables(found))
    notes(note for note in found.notes if not note.startswith("no result for"))
    page = results_folder(plans, runtime) / "report.html"
    say([f"top-1 in percent on the {found.split} split, 95% intervals ({found.intervals}); report: {page}"])
    return not found.missing


def on_a_line(problem: Problem) -> str:
    """A problem as a note of one line."""
    hint = f" ({problem.hint})" if problem.hint else ""
    return f"{problem.message}{hint}" + (f" at {problem.place}" if problem.place else "")
