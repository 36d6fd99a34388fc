"""The command `stagedkd tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stagedkd.cli.common import (
    ClusterFile,
    DataDir,
    Device,
    Engine,
    Gpus,
    Jobs,
    Log,
    Quiet,
    SpecPath,
    StoreDir,
    Threads,
    Verbose,
    check_engine,
    print_lines,
    print_notes,
    print_tables,
    progress,
    runtime_of,
)

if TYPE_CHECKING:
    from rich.table import Table

    from stagedkd.experiment.tuning import TuneResult


def tune(
    spec: SpecPath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the cells and stages of the trials.")] = False,
    store: StoreDir = None,
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
) -> None:
    """Try the values of the spec's section tune on validation, and write the choices to SPEC.tuned.yaml.

    An interrupted tuning resumes.
    """
    from stagedkd.experiment import tuning

    check_engine(engine, cluster, jobs)
    options = {"device": device, "gpus": gpus, "threads": threads, "jobs": jobs, "cluster": cluster, "log": log}
    runtime = runtime_of(spec, store=store, data_dir=data_dir, **options)
    if dry_run:
        for count in tuning.dry_run(spec, runtime):
            stages = f"{count.stages} unique stages, of which the store lacks {count.missing}"
            print_lines([f"{count.network}: {count.cells} cells, {stages}"])
        return
    with progress(verbose - quiet) as listener:
        result = tuning.tune(spec, runtime, listener, engine)
    print_tables([tune_table(result)])
    print_notes(result.notes)
    print_lines([f"wrote {result.path}; the spec takes these choices with tuned: {result.path.name}"])


def tune_table(result: TuneResult) -> Table:
    """Return a table with a row for each value that was tried, with its top-1 on validation by seed; chosen rows are
    bold and end in `chosen`."""
    from statistics import fmean

    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "network", "values", box=None, header_style="bold", pad_edge=False)
    for column in ("worst", "mean", "by seed"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, rows in result.rows.items():
        for row in rows:
            top1 = [value or 0.0 for value in row.top1.values()]
            values = ", ".join(f"{field} = {label}" for field, label in row.labels.items())
            seeds = ", ".join("diverged" if value is None else f"{100 * value:.1f}" for value in row.top1.values())
            cells = (f"{100 * min(top1):.1f}", f"{100 * fmean(top1):.1f}", seeds)
            style, mark = ("bold", "chosen") if row.chosen else ("", "")
            table.add_row(Text(name or "all"), row.network, Text(values), *cells, mark, style=style)
    return table
