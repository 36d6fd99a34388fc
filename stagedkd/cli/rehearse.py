"""The command `stagedkd rehearse`, and what it and `run` print of a rehearsal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stagedkd.cli.common import (
    Cells,
    DataDir,
    Device,
    Jobs,
    Overrides,
    Quiet,
    SpecPath,
    StoreDir,
    Threads,
    Verbose,
    load_cells,
    print_lines,
    print_tables,
    progress,
    runtime_of,
)

if TYPE_CHECKING:
    from rich.table import Table

    from stagedkd.experiment.rehearsal import Rehearsed


def rehearse(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    store: StoreDir = None,
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
    jobs: Jobs = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Take a few steps of every training that the store lacks, to see whether it runs, what it needs, and how long."""
    from stagedkd.experiment.rehearsal import rehearse as rehearse_experiment

    runtime = runtime_of(spec, store=store, data_dir=data_dir, device=device, threads=threads, jobs=jobs)
    with progress(verbose - quiet) as listener:
        found = rehearse_experiment(load_cells(spec, overrides, cells), runtime, listener)
    print_rehearsal(found)


def print_rehearsal(found: Rehearsed) -> None:
    """Print what each stage will take, and the whole run."""
    if not found.estimates:
        print_lines(["nothing to rehearse: the store has every stage"])
        return
    print_tables([rehearsal_table(found)])
    print_lines([f"the run will take about {duration(found.seconds)} and write {size(found.disk)}"])


def rehearsal_table(found: Rehearsed) -> Table:
    """Return a table with a row for each stage that was rehearsed, and the number of stages that it stands for."""
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", box=None, header_style="bold", pad_edge=False)
    for column in ("stages", "each", "memory", "device memory", "seconds of a step"):
        table.add_column(column, justify="left" if column.startswith("seconds") else "right")
    counts = Counter(stage.identity for stage in found.alike.values())
    for stage in {stage.identity: stage for stage in found.alike.values()}.values():
        estimate = found.estimates[stage.identity]
        steps = ", ".join(f"{name} {seconds:.3g}" for name, seconds in estimate.steps.items())
        memory = (size(estimate.memory[name]) if name in estimate.memory else "-" for name in ("resident", "device"))
        each = duration(estimate.seconds)
        table.add_row(Text(stage.name), str(counts[stage.identity]), each, *memory, Text(steps))
    return table


def duration(seconds: float) -> str:
    """Return a time in words, with two units at most."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{minutes} min" if minutes < 100 else f"{hours} h" if hours < 72 else f"{seconds / 86_400:.1f} days"


def size(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
