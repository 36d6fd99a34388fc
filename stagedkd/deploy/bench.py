"""Latency and throughput of a student in its runtimes, in alternating turns of processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from stagedkd.deploy.export.write import README, REPORT
from stagedkd.deploy.student import Found
from stagedkd.errors import StoreError, TrainingError, UsageError
from stagedkd.plan.work import DistillWork
from stagedkd.report.bench import Bench, Timing
from stagedkd.report.card import CARD
from stagedkd.train.spread import spread_of

TORCH, TEACHER = "torch", "teacher"
ROUNDS, SECONDS = 7, 0.3  # turns of each runtime, and the time of one
BATCHES = (1, 2, 4, 8, 16, 32)


def runtimes_of(found: Found, folder: Path, names: Sequence[str], teacher: Path | None) -> dict[str, Path]:
    """The runtimes of a student, by name: torch, the exports in `folder`/export, and the teacher's artifact.

    Raises:
        UsageError: one of `names` is not there. With no names, all that there are.
    """
    known = {TORCH: found.weights.path}
    for path in sorted((folder / "export").glob(f"*/{REPORT}")):
        if json.loads((path.parent / REPORT).read_text("utf-8"))["compared"] is not None:
            known[path.parent.name] = path.parent
    if teacher is not None:
        known[TEACHER] = teacher
    for name in names:
        if name not in known:
            hint = f"there are {', '.join(known)}; stagedkd export makes others"
            raise UsageError(f"{folder} has no runtime '{name}'", hint=hint)
    return {name: known[name] for name in names or known}


def teacher_of(found: Found, folder: Path, store: Path) -> Path | None:
    """The artifact of the teacher at the head of a student's cascade, if the store has it."""
    from stagedkd.experiment.reproduce import manifest_in

    try:
        manifest = manifest_in(found.weights.path)
    except StoreError:
        return None
    key = manifest.needs.get("teacher")
    while key is not None and isinstance(manifest.closure[key].work, DistillWork):  # an assistant
        key = manifest.closure[key].needs["teacher"]
    place = store / key.folder(manifest.closure[key].work.kind) if key else None
    return place if place is not None and (place / "files" / "teacher.safetensors").is_file() else None


def bench(found: Found, runtimes: Mapping[str, Path], threads: int) -> Bench:
    """Measure the runtimes, a turn each, again and again.

    Args:
        runtimes: exports, or networks that torch runs (see `find_student`), by names of any kind.
    Raises:
        TrainingError: a runtime does not load or run.
    """
    from stagedkd.stages.provenance import cpu

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_Worker(name, path, threads)) for name, path in runtimes.items()}
        counts = {name: worker.count(1) for name, worker in workers.items()}
        alone: dict[str, list[list[float]]] = {name: [] for name in workers}
        for turn in range(ROUNDS):
            names = list(workers)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                alone[name].append(workers[name].take(1, counts[name]))
        rates = {name: _rates(worker) for name, worker in workers.items()}
        timings = tuple(_timing(name, alone[name], rates[name], workers[name]) for name in workers)
    return Bench(
        weights=found.card.weights, threads=threads, machine=cpu(), cores=os.cpu_count(), load=load, timings=timings
    )


def _rates(worker: _Worker) -> dict[int, float]:
    """Clips a second by batch, the better of two turns, until larger batches give no more."""
    rates: dict[int, float] = {}
    for batch in worker.batches:
        count = max(2, worker.count(batch) // 2)
        rates[batch] = max(batch / float(np.median(worker.take(batch, count))) for _ in range(2))
        if rates[batch] < 0.9 * max(rates.values()):
            break
    return rates


def _timing(name: str, alone: list[list[float]], rates: Mapping[int, float], worker: _Worker) -> Timing:
    seconds = np.array(alone)
    middle, spread = spread_of(seconds)
    best = max(rates, key=lambda batch: rates[batch])
    p95 = float(np.percentile(seconds, 95))
    return Timing(
        runtime=name,
        median=middle,
        p95=p95,
        spread=spread,
        throughput=rates[best],
        batch=best,
        memory=worker.memory(),
        bytes=_size(worker.path),
    )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    if (path / "files").is_dir():
        return sum(each.stat().st_size for each in (path / "files").glob("*.safetensors"))
    files = (each for each in path.rglob("*") if each.is_file() and each.name not in (CARD, README, REPORT))
    return sum(each.stat().st_size for each in files)


class _Worker:
    """A process that runs one runtime, on request."""

    def __init__(self, name: str, path: Path, threads: int) -> None:
        self.name, self.path, self.threads = name, path, threads

    def __enter__(self) -> _Worker:
        command = [sys.executable, "-m", "stagedkd.deploy.bench_worker", str(self.path), str(self.threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONSAFEPATH": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        self.batches: list[int] = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def take(self, batch: int, count: int) -> list[float]:
        """The seconds of `count` calls with `batch` clips."""
        return self._ask({"batch": batch, "count": count})

    def count(self, batch: int) -> int:
        """How many calls fill a turn; the first calls warm up."""
        self.take(batch, 3)
        return max(5, min(200, round(SECONDS / max(1e-5, float(np.median(self.take(batch, 3)))))))

    def memory(self) -> int | None:
        """The peak of its resident memory in bytes; None where the system does not tell."""
        return self._ask({"memory": True})

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(dict(request)) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended, and says why
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        said = self.process.stderr.read().strip().splitlines() or ["it ended"]
        raise TrainingError(f"{self.name} cannot be run: {said[-1][:300]}", hint="leave it out, or export it again")
