"""Where the CPU time of a hop's steps goes, by stagedkd and by the bare loop, side by side.

    python benchmarks/hop_profile.py [SIZE]     # quickstart, large or tiny, as in benchmarks/hop.py

Two tables, both of CPU time, so that other processes on the machine count little: the operators of torch, forward and
backward, and the functions of Python by own time, where a call into torch is one function. Both trainings are shortened
to two joint epochs. Measuring slows Python down, so compare the rows, and take totals from benchmarks/hop.py.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hop
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stagedkd.train.job import Job

SHOWN = 22
Table = dict[str, tuple[float, float]]  # name -> (ms, calls), both of a step


def shortened(job: Job) -> Job:
    """The job with two epochs in its last phase."""
    *grow, joint = job.phases
    return replace(job, phases=(*grow, joint.model_copy(update={"epochs": 2})))


def steps(job: Job) -> int:
    """The steps of a job."""
    return sum(phase.run_epochs * job.feed.steps(phase) for phase in job.phases)


class Operators(TorchDispatchMode):
    """Inside, sums the CPU seconds and the calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, tuple[float, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.process_time()
        result = func(*args, **(kwargs or {}))
        seconds, calls = self.sums.get(str(func), (0.0, 0))
        self.sums[str(func)] = (seconds + time.process_time() - started, calls + 1)
        return result

    def table(self, count: int) -> Table:
        """The operators of `count` steps."""
        return {name: (1000 * seconds / count, calls / count) for name, (seconds, calls) in self.sums.items()}


def functions(recorded: cProfile.Profile, count: int) -> Table:
    """The functions of a recording of `count` steps."""
    table: Table = {}
    stats: Mapping[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(recorded).stats  # type: ignore[attr-defined]
    for (path, _, name), (_, calls, own, _, _) in stats.items():
        key = f"{Path(path).name}:{name}" if path != "~" else name
        ms, before = table.get(key, (0.0, 0.0))
        table[key] = (ms + 1000 * own / count, before + calls / count)
    return table


def recorded(side: str, size: str, kind: str) -> Table:
    """The table of a side, of operators or of functions."""
    rival, tables = hop.rival_of(side), list[Table]()
    own = hop.hop_stage.fit

    def fit(job: Job) -> Any:
        job = shortened(job)
        job.feed.source.views(job.feed.clip_ids.tolist(), 1, 1)

        def train() -> Any:
            return own(job) if rival is None else rival(job, teacher)

        if kind == "operators":
            with Operators() as mode:
                progress = train()
            tables.append(mode.table(steps(job)))
        else:
            python = cProfile.Profile(time.process_time)
            progress = python.runcall(train)
            tables.append(functions(python, steps(job)))
        return progress if rival is None else hop.Progress()

    with tempfile.TemporaryDirectory() as name:
        plan, runtime, artifact = hop.prepare(Path(name), size)
        stage = plan.stage("student")
        teacher = hop.load_network(artifact, stage.work.teacher, hop.CLASSES, Path(name)).net.eval()  # type: ignore[union-attr]
        teacher.requires_grad_(False)
        hop.hop_stage.fit = fit
        try:
            hop.run_stage(plan, stage, runtime, hop.Silent())
        finally:
            hop.hop_stage.fit = own
    return tables[0]


def show(title: str, a: Table, b: Table) -> None:
    """Print both tables side by side, the largest differences first."""
    totals = [sum(ms for ms, _ in table.values()) for table in (a, b)]
    print(f"\n{title + ', a step':<52}{'stagedkd ms':>12}{'loop ms':>9}{'difference':>11}   calls")
    print(f"{'all':<52}{totals[0]:>12.2f}{totals[1]:>9.2f}{totals[0] - totals[1]:>11.2f}")
    none = (0.0, 0.0)
    names = sorted({*a, *b}, key=lambda n: abs(a.get(n, none)[0] - b.get(n, none)[0]), reverse=True)
    for name in names[:SHOWN]:
        (ms, calls), (other, others) = a.get(name, none), b.get(name, none)
        print(f"{name[:51]:<52}{ms:>12.2f}{other:>9.2f}{ms - other:>11.2f}   {calls:.0f} / {others:.0f}")


def main() -> None:
    size = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    torch.set_num_threads(1)
    for kind in ("operators", "functions"):
        show(kind, recorded("stagedkd", size, kind), recorded("loop", size, kind))


if __name__ == "__main__":
    main()
