"""The commands `stagedkd run` and `stagedkd rehearse`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stagedkd.cli import dvc as dvc_commands
from stagedkd.cli.common import (
    Cells,
    ClusterFile,
    DataDir,
    Device,
    Engine,
    Gpus,
    Jobs,
    Log,
    NoDvc,
    NoRehearsal,
    Overrides,
    Quiet,
    ResultsDir,
    SpecPath,
    StoreDir,
    Threads,
    Verbose,
    check_engine,
    console,
    load_cells,
    one_line,
    print_grid,
    print_lines,
    print_results,
    print_tables,
    progress,
    runtime_of,
)
from stagedkd.errors import TrainingError

if TYPE_CHECKING:
    from rich.table import Table

    from stagedkd.experiment.costs import Costs
    from stagedkd.experiment.run import GridOutcome
    from stagedkd.plan.graph import Plans, Stage
    from stagedkd.plan.runtime import Runtime


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
    jobs: Jobs = None,
    engine: Engine = "in-process",
    cluster: ClusterFile = None,
    log: Log = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    no_dvc: NoDvc = False,
    no_rehearsal: NoRehearsal = False,
) -> None:
    """Run the stages that the store lacks, write the report, and tell DVC if it is used.

    After a kill, the same command resumes. A run of over ten minutes that was not rehearsed is rehearsed first.
    """
    from stagedkd.experiment.rehearsal import rehearse_if_long
    from stagedkd.experiment.run import run_experiment

    experiment = load_cells(spec, overrides, cells)
    check_engine(engine, cluster, jobs)
    settings = {
        "device": device,
        "gpus": gpus,
        "threads": threads,
        "jobs": jobs,
        "cluster": cluster,
        "log": log or None,
    }
    runtime = runtime_of(spec, store=store, results=results, data_dir=data_dir, **settings)
    with ExitStack() as protection:
        with progress(verbose - quiet) as listener:
            for note in experiment.notes:
                if note.severity == "note":
                    listener.note(one_line(note))
            wanted = not no_rehearsal and engine == "in-process"  # elsewhere the workers' machines may be others

            def first(plans: Plans, missing: Sequence[Stage]) -> None:
                listener.expect(rehearse_if_long(experiment, runtime, listener, wanted, plans, missing))

            outcome = run_experiment(experiment, runtime, listener, engine, first=first, protection=protection)
        _report_outcome(outcome, runtime, None if overrides or cells else spec, dvc=not no_dvc)
    _raise_failed(outcome)


def _report_outcome(outcome: GridOutcome, runtime: Runtime, spec: Path | None, *, dvc: bool) -> None:
    """Write the report of what finished, and tell DVC, if it is used; `spec` is None if a part of a spec was run."""
    if not outcome.ran and not outcome.failed:
        console(err=True).print("nothing to do: every stage is in the store", highlight=False)
    wrote = False
    if len(outcome.plans.cells) == 1 and outcome.finished:
        wrote = print_results(next(iter(outcome.finished.values())).plan, runtime, wrote=bool(outcome.ran))
    elif outcome.finished:
        wrote = print_grid(outcome.plans, runtime, wrote=bool(outcome.ran)) and bool(outcome.ran)
    if dvc:
        dvc_commands.commit_run(outcome, spec, wrote=wrote)


def rehearse(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    store: StoreDir = None,
    data_dir: DataDir = None,
    device: Device = None,
    gpus: Gpus = None,
    threads: Threads = None,
    jobs: Jobs = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Take a few steps of every training that the store lacks, to see whether it runs, what it needs, and how long.

    It does so at full size, before the first one trains, and says seconds of a step, peak memory, disk, and the time of
    the whole run; where memory is short, it names a batch that fits.
    """
    from stagedkd.experiment.rehearsal import rehearse as rehearse_experiment

    settings = {"device": device, "gpus": gpus, "threads": threads, "jobs": jobs}
    runtime = runtime_of(spec, store=store, data_dir=data_dir, **settings)
    with progress(verbose - quiet) as listener:
        costs = rehearse_experiment(load_cells(spec, overrides, cells), runtime, listener)
    print_costs(costs)


def print_costs(costs: Costs) -> None:
    """Print what each stage will take, and the whole run."""
    if not costs.alike:
        print_lines(["nothing to run: the store has every stage"])
        return
    print_tables([costs_table(costs)])
    print_lines([costs.text])


def costs_table(costs: Costs) -> Table:
    """Return a table with a row for each stage that was rehearsed or guessed, and the number of stages that it stands
    for."""
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from stagedkd.store.maintenance import age_text

    table = Table("stage", box=None, header_style="bold", pad_edge=False)
    for column in ("stages", "each", "memory", "device memory", "seconds of a step"):
        table.add_column(column, justify="left" if column.startswith("seconds") else "right")
    alike = [stage for key, stage in costs.alike.items() if key in costs.estimates]
    counts = Counter(stage.identity for stage in alike)
    for stage in {stage.identity: stage for stage in alike}.values():
        estimate = costs.estimates[stage.identity]
        steps = ", ".join(f"{name} {seconds:.3g}" for name, seconds in estimate.steps.items())
        memory = (decimal(estimate.memory[name]) if name in estimate.memory else "-" for name in ("resident", "device"))
        each = age_text(estimate.seconds)
        table.add_row(Text(stage.name), str(counts[stage.identity]), each, *memory, Text(steps))
    return table


def _raise_failed(outcome: GridOutcome) -> None:
    """Make the command fail if a cell failed."""
    if outcome.failed and len(outcome.plans.cells) == 1:
        raise next(iter(outcome.failed.values()))
    if outcome.failed:
        rows: list[str] = []
        told: set[str] = set()  # cells that share a stage fail with one error: its hint stands once
        for name, error in outcome.failed.items():
            rows.append(f"  {name}: {error.message}" + (f"; {error.hint}" if error.hint not in {"", *told} else ""))
            told.add(error.hint)
        message = "\n".join((f"{len(outcome.failed)} of {len(outcome.plans.cells)} cells failed:", *rows))
        raise TrainingError(message, hint="fix them, then run the same command again: it runs what is missing")
