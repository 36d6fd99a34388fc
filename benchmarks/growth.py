"""How work grows with the project: clips, frames, groups, cells and stages, ten times each.

    python benchmarks/growth.py [--json FILE] [ROW ...]

Each row does the same work at two sizes and prints the exponent: log10 of the ratio of the CPU times, of the fastest
of three runs, with the processes that were started. Work on everything may grow by 1.1 at most. What is done for one
stage or one request again and again (`each`) may not grow; an exponent of 0.3 is noise, or listing a grid's cells.
Decoding, training and artifacts are stand-ins; DVC is the real one. At last it prints peaks of memory beyond the
imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from stagedkd.data import cache_build
from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec, ClipCache
from stagedkd.data.decode import Footage
from stagedkd.data.fingerprint import HashMemo, fingerprint
from stagedkd.data.index import Entry, split_entries
from stagedkd.data.shard import StoredClip
from stagedkd.data.views import View
from stagedkd.dvc.commit import commit_stages
from stagedkd.dvc.pipeline import dvc_stages
from stagedkd.dvc.sync import find_stage, load_project, sync
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plans
from stagedkd.plan.lock import DataLock, Lock, read_lock, write_lock
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.spec.load import load_experiment
from stagedkd.spec.schema import Augment, Folder
from stagedkd.stages.context import Silent
from stagedkd.stages.tables import write_table
from stagedkd.store.manifest import file_digest, manifest_of
from stagedkd.train.feed import Feed

SPEC = """\
data: {kind: shapes, classes: 8, train: 64, val: 32}
clip: {frames: 4, size: 16}
train: {batch: 32}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1, 1], epochs: 1}
distill: {phases: {joint: {losses: LOSSES}}}
"""
TOTAL, EACH = 1.1, 0.3
FRAMES = 300
Make = Callable[[int, Path], Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """Work that is done at `size` and at ten times `size`. `make` prepares it in an empty folder, untimed."""

    grows: str
    work: str
    size: int
    make: Make
    target: float = TOTAL
    runs: int = 3


def cpu() -> float:
    """The CPU time of this process and of those that it has waited for, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measured(row: Row, size: int) -> float:
    """The CPU time of the work at a size, the fastest of the runs."""
    times: list[float] = []
    for _ in range(row.runs):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            work = row.make(size, Path(folder))
            started = cpu()
            work()
            times.append(cpu() - started)
    return min(times)


# ---------------------------------------------------------------- clips, frames, groups


class Views:
    """A source whose views cost nothing."""

    loads = False

    def train_view(self, *_: object) -> View:
        return View(np.zeros(0, np.int64), (0, 0, 1, 1))


def epoch(train: str, losses: str) -> Make:
    """All picks of an epoch."""

    def make(n: int, folder: Path) -> Callable[[], object]:
        text = SPEC.replace("LOSSES", losses).replace("train: {batch: 32}", f"train: {{batch: 32{train}}}")
        (folder / "s.yaml").write_text(text, "utf-8")
        plan = next(iter(compile_experiment(load_experiment(folder / "s.yaml")).cells.values()))
        (phase,) = plan.stage("student").work.trainings
        labels = np.arange(n) % 40
        labels[::2] = -1
        source: Any = Views()
        feed = Feed(source, np.arange(n), labels, Augment(), 3)

        def work() -> None:
            for step in range(feed.steps(phase)):
                feed.pick(phase, 0, step)

        return work

    return make


def deal(n: int, folder: Path) -> Callable[[], object]:
    entries = [Entry(f"{i}.avi", f"class{i % 50}", f"group{i // 3}") for i in range(3 * n)]
    return lambda: split_entries(entries, Folder(kind="folder", path="x", folds=10))


def prepare(n: int, folder: Path) -> Callable[[], object]:
    from stagedkd.experiment.run import locked_plan, run_stage

    text = SPEC.replace("LOSSES", "{kd: 1.0}").replace("train: 64", f"train: {n}")
    (folder / "s.yaml").write_text(text, "utf-8")
    runtime = Runtime(root=str(folder))
    plan = locked_plan(load_experiment(folder / "s.yaml").cells[0].spec, runtime, Silent())
    return lambda: [run_stage(plan, plan.stage(name), runtime, Silent()) for name in ("data", "labels")]


def cache_spec(n: int, folder: Path) -> CacheSpec:
    return CacheSpec(folder, {f"class{i % 50:02d}/{i:07d}.avi": f"{i}:{i:064x}" for i in range(n)}, 128)


def stored(address: Address, *_: object) -> StoredClip:
    """A decoded clip of some frames, with times that no two clips share."""
    number = int(address.file.stem)
    times = (np.arange(FRAMES) / 30 + number).tolist()
    return StoredClip((b"0" * 30,), 30, 1, 1, tuple(range(10)), Footage(FRAMES, 240, 320, times, ""))


def build(n: int, folder: Path) -> Callable[[], object]:
    spec = cache_spec(n, folder)

    def work() -> None:
        stand_ins = {"store_clip": stored, "require_locked": lambda *_: None}  # there are no files
        with mock.patch.multiple(cache_build, **stand_ins), mock.patch.object(cache_build.os, "fsync"):
            cache_build._build(folder, spec, list(range(len(spec.shards))), 1, lambda *_: None)

    return work


def reopen(n: int, folder: Path) -> Callable[[], object]:
    build(n, folder)()
    return lambda: ClipCache(folder, cache_spec(n, folder))


def footages(n: int, folder: Path) -> Callable[[], object]:
    build(n, folder)()
    opened = ClipCache(folder, cache_spec(n, folder))
    return lambda: [problem.frames for _, problem in opened.footages()]


def hashed(n: int, folder: Path) -> Callable[[], object]:
    for i in range(n):
        path = folder / "set" / f"class{i % 20}" / f"{i}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % i)
    return lambda: fingerprint(Folder(kind="folder", path="set"), folder, HashMemo(folder / "memo.json"))


def lock_of(n: int) -> Lock:
    files = {f"class{i % 50:02d}/{i:07d}.avi": f"{i}:{i:064x}" for i in range(n)}
    entry = DataLock(fingerprint=f"{n:064x}", classes=("a", "b"), clips=n, files=files)
    return Lock(data={"folder:set": entry})


def locked(n: int, folder: Path) -> Callable[[], object]:
    def work() -> None:
        write_lock(folder / "stagedkd.lock", lock_of(n))
        read_lock(folder / "stagedkd.lock")

    return work


def requests(n: int, folder: Path) -> Callable[[], object]:
    """Ten requests to workers after the first one, written and read."""
    real = SPEC.replace(SPEC.splitlines()[0], "data: {kind: folder, path: set}").replace("LOSSES", "{kd: 1.0}")
    (folder / "s.yaml").write_text(real, "utf-8")
    plan = next(iter(compile_experiment(load_experiment(folder / "s.yaml"), lock_of(n)).cells.values()))
    runtime, path = Runtime(root=str(folder)), folder / "request.json"

    def work() -> None:
        request = WorkerRequest.of(plan, plan.stage("student"), runtime, devices=())
        path.write_text(request.model_dump_json(), "utf-8")
        assert len(WorkerRequest.read(path).graph.lock.data["folder:set"].files) == n and path.stat().st_size < 100_000

    work()
    return lambda: [work() for _ in range(10)]


# ---------------------------------------------------------------- cells and stages


def project(n: int, folder: Path) -> Path:
    """A project with a grid of n cells."""
    (folder / "specs").mkdir()
    text = SPEC.replace("LOSSES", "{kd: 1.0}") + f"grid: {{seeds: {n}}}\n"
    (folder / "specs" / "s.yaml").write_text(text, "utf-8")
    text = "runtime: {device: cpu, threads: 1}\ndvc: {specs: [specs/s.yaml]}\n"
    (folder / "params.yaml").write_text(text, "utf-8")
    return folder


def plans_of(folder: Path) -> Plans:
    return compile_experiment(load_experiment(folder / "specs" / "s.yaml"))


def published(folder: Path) -> Plans:
    """Stand-ins for all artifacts of a project."""
    plans = plans_of(folder)
    evaluated = {"top1": 0.5, "ece": 0.1, "clips": 32, "split": "val", "views": "1x1", "params": 9, "flops": 9}
    data = json.dumps(
        {"classes": ["a", "b"], "clips": {"train": 64, "val": 32, "test": 0}, "bad_files": [], "leaks": []}
    )
    for plan in plans.cells.values():
        for stage in plan.stages:
            files = folder / "store" / stage.folder / "files"
            if files.exists():
                continue
            files.mkdir(parents=True)
            (files / "data.json").write_text(data, "utf-8")
            metrics: dict[str, Any] = {"steps": 2, "labels": {"clean": 64}, "losses": {}, **evaluated}
            if stage.role in ("teacher", "student"):
                metrics["labels"] = "same"
            made = manifest_of(plan, stage).model_copy(
                update={"files": {"data.json": file_digest(files / "data.json")}, "metrics": metrics}
            )
            (files / "manifest.json").write_text(made.model_dump_json(), "utf-8")
    return plans


def compiled(n: int, folder: Path) -> Callable[[], object]:
    project(n, folder)
    return lambda: plans_of(folder)


def checked(n: int, folder: Path) -> Callable[[], object]:
    from stagedkd.cli import check

    project(n, folder)
    return lambda: check(folder / "specs" / "s.yaml")


def synced(n: int, folder: Path) -> Callable[[], object]:
    project(n, folder)
    return lambda: [sync(folder, check=False, commit=False) for _ in range(2)]


CELLS_OF_204 = 101  # of the grid, two stages each and two that they share


def committed(n: int, folder: Path) -> Callable[[], object]:
    published(project(n, folder))
    sync(folder, check=False, commit=False)
    os.environ |= {f"DVC_{name}_DIR": str(folder / ".dvc-own") for name in ("GLOBAL_CONFIG", "SITE_CACHE")}
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    stages = [
        s
        for s in dvc_stages(load_project(folder).pipeline)
        if s.name.partition("-")[0] in ("teach", "distill", "evaluate")
    ]

    def work() -> None:
        problem = commit_stages(folder, "store", stages)
        assert not problem, problem

    return work


def one_stage(n: int, folder: Path) -> Callable[[], object]:
    project(n, folder)
    sync(folder, check=False, commit=False)
    last = list(plans_of(folder).unique)[-2]
    return lambda: [find_stage(folder, last.short) for _ in range(10)]


def run_again(n: int, folder: Path) -> Callable[[], object]:
    from stagedkd.experiment.run import run_experiment

    published(project(n, folder))
    return lambda: run_experiment(load_experiment(folder / "specs" / "s.yaml"), load_runtime(folder))


def reported(n: int, folder: Path) -> Callable[[], object]:
    from stagedkd.report.write import report_grid

    plans = published(project(n, folder))
    return lambda: report_grid(plans, load_runtime(folder))


def chain(n: int, folder: Path) -> Callable[[], object]:
    """A teacher, n assistants and a student: compile, and the request of the last stage."""
    items = ", ".join(f"{{arch: resnet3d, width: {4 + i}, blocks: [1, 1, 1], epochs: 1}}" for i in reversed(range(n)))
    (folder / "s.yaml").write_text(SPEC.replace("LOSSES", "{kd: 1.0}") + f"cascade: [{items}]\n", "utf-8")

    def work() -> None:
        plan = next(iter(compile_experiment(load_experiment(folder / "s.yaml")).cells.values()))
        WorkerRequest.of(plan, plan.stages[-1], Runtime(root=str(folder)), devices=())

    return work


ROWS = (
    Row("clips", "picks of an epoch, all clips", 20_000, epoch("", "{kd: 1.0}")),
    Row("clips", "picks of an epoch, labelled clips", 20_000, epoch("", "{ce: 1.0}")),
    Row("clips", "picks of an epoch, both kinds", 20_000, epoch(", labelled: 0.25", "{ce: 1.0, kd: 1.0}")),
    Row("clips", "picks of an epoch, balanced", 20_000, epoch(", balance: classes", "{ce: 1.0}")),
    Row("clips", "data and labels of a simulated set", 10_000, prepare),
    Row("clips", "build a clip cache (stand-in frames)", 3_200, build),
    Row("clips", "open a clip cache", 3_200, reopen),
    Row("frames", "read what the clips of a cache hold", 3_200, footages),
    Row("clips", "fingerprint of a folder", 1_500, hashed),
    Row("clips", "write and read stagedkd.lock", 10_000, locked),
    Row("clips", "10 requests to workers", 10_000, requests, EACH),
    Row("groups", "deal groups to folds", 3_000, deal),
    Row("cells", "load and compile", 60, compiled),
    Row("cells", "check", 60, checked),
    Row("cells", "dvc sync, twice", 60, synced),
    Row("cells", "tell DVC (its own process)", 20, committed, runs=1),
    Row("cells", "find the stage of `stage KEY`, 10 times", 60, one_stage, EACH),
    Row("cells", "run with nothing to do", 50, run_again),
    Row("cells", "report of a grid", 50, reported),
    Row("stages", "compile a cascade, one request", 6, chain),
)


# ---------------------------------------------------------------- memory


def peak() -> float:
    """The highest resident memory of this process so far, in MB. (`ru_maxrss` would be that of the parent, if it was
    larger when it started this process.)"""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000  # pyright: ignore[reportOptionalSubscript]


def memory(what: str, clips: int) -> float:
    """The memory in MB that a child process needs beyond its imports."""
    code = f"from growth import *; print(remember({what!r}, {clips}))"
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return float(found.stdout)


def remember(what: str, clips: int) -> float:
    """Do the work of `memory` in this process."""
    from stagedkd.data.source import videos_of
    from stagedkd.spec.schema import Clip
    from stagedkd.stages.tables import read_table, read_times

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if what == "cache":
            child = f"from growth import *; build({clips}, Path({name!r}))()"
            subprocess.run([sys.executable, "-c", child], check=True)
            before, opened = peak(), ClipCache(folder, cache_spec(clips, folder))
            return peak() - before + 0 * len(opened.paths)
        path = folder / "clips.parquet"
        child = f"from growth import *; table({clips}, Path({str(path)!r}))"
        subprocess.run([sys.executable, "-c", child], check=True)
        before = peak()
        clip = Clip(sampling="time", rate=15.0) if what == "times" else Clip()
        content = path.read_bytes()
        rows = read_table(content, "path", "split", "frames", "height", "width")
        videos = videos_of(rows, clip, read_times(content) if what == "times" else None)
        return peak() - before + 0 * len(videos)


def table(clips: int, path: Path) -> None:
    """clips.parquet of videos with four rates and many lengths."""
    lengths = [FRAMES - 40 + i % 80 for i in range(clips)]
    clocks = {(n, rate): np.arange(n) / rate for n in set(lengths) for rate in (24, 25, 30000 / 1001, 30)}
    times = [clocks[n, (24, 25, 30000 / 1001, 30)[i % 4]] for i, n in enumerate(lengths)]
    columns: dict[str, Any] = {"path": [f"class{i % 50:02d}/{i:07d}.avi" for i in range(clips)]}
    columns |= {"split": ["val"] * clips, "frames": lengths, "height": [240] * clips, "width": [320] * clips}
    write_table(path, {**columns, "times": times})


def dvc_seconds() -> dict[str, Any]:
    """The wall time of `dvc sync` and of telling DVC about all stages, of a grid with 204 of them or a few more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = committed(CELLS_OF_204, folder)  # writes dvc.yaml a first time, which is not measured
        stages = len(dvc_stages(load_project(folder).pipeline))
        began = time.perf_counter()
        sync(folder, check=False, commit=False)
        work()
        seconds = time.perf_counter() - began
    figures = dict.fromkeys(("median", "min", "max"), seconds)
    name = f"dvc sync, and telling DVC of {stages} stages, wall"
    return {"name": name, **figures, "unit": "s", "target": 15.0, "holds": seconds <= 15.0}


def main(names: list[str], out: str | None) -> None:
    results: list[dict[str, Any]] = []
    print(f"{'grows':<8}{'work':<42}{'sizes':>18}{'CPU s':>18}{'exponent':>10}{'target':>8}")
    for row in ROWS:
        if names and not any(name in f"{row.grows} {row.work}" for name in names):
            continue
        small, large = measured(row, row.size), measured(row, 10 * row.size)
        exponent = math.log10(large / small)
        sizes, seconds = f"{row.size:,} {10 * row.size:,}", f"{small:.3f} {large:.3f}"
        mark = "" if exponent <= row.target else "  over"
        print(
            f"{row.grows:<8}{row.work:<42}{sizes:>18}{seconds:>18}{exponent:>10.2f}{row.target:>8.1f}{mark}", flush=True
        )
        figures = dict.fromkeys(("median", "min", "max"), exponent)
        results.append(
            {"name": f"{row.grows}: {row.work}", **figures, "unit": "exponent", "target": row.target, "holds": not mark}
        )
    if not names or "dvc" in names:
        results.append(row := dvc_seconds())
        print(f"{row['name']}: {row['median']:.1f} s", flush=True)
    for what, title in (
        ("counts", "clips.parquet for views by count"),
        ("times", "clips.parquet for views by time"),
        ("cache", "an open clip cache"),
    ):
        if not names or "memory" in names:
            size, name = memory(what, 240_000), f"memory of {title}, 240,000 clips of {FRAMES} frames"
            print(f"{name}: {size:.0f} MB beyond the imports", flush=True)
            figures = dict.fromkeys(("median", "min", "max"), size / 1000)
            results.append({"name": name, **figures, "unit": "GB", "target": 0.5, "holds": size <= 500})
    if out:
        Path(out).write_text(json.dumps({"rows": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    file = arguments.pop(arguments.index("--json") + 1) if "--json" in arguments else None
    main([a for a in arguments if a != "--json"], file)
