"""The table of speed: every target, as a ratio of alternating runs (`make bench`).

    python benchmarks/speed.py [--rows ID ...] [--rounds N] [--json FILE]

A row has two sides, each a process of its own, which run in turn for N rounds; its figure is the ratio of a round, with
the median, the least and the largest over the rounds. Rows of other scripts come from their `--json FILE`. "The commit
before" is BEFORE, unpacked into a folder of its own. A row that cannot run here says why. The exit status is 1 if a row
failed, for example since the losses of two sides differ; a target that does not hold is printed, and no failure.

--json writes {"rows": [{id, name, median, min, max, target, holds, ...}], "machine": {...}}; a row without figures has
`skipped` or `failed` with the reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

REPO = Path(__file__).resolve().parent.parent
BEFORE = "2af4c27"  # the last commit before the work on speed
TORCHDISTILL = "1.1.5"
AGREE = 1e-5  # the largest relative difference of losses between the sides of a row
PROJECT = ("specs", "params.yaml", "stagedkd.lock")  # what a side's project folder holds at its start
Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a row: a command that runs in a fresh project folder, with the stagedkd of `tree`.

    `threads` is OMP_NUM_THREADS; None leaves it to the tree. `seconds`: wall is measured around the process; printed is
    the number `seconds` in the last line that it prints, which is JSON.
    """

    command: tuple[str, ...]
    tree: Literal["here", "before"] = "here"
    threads: int | None = 1
    seconds: Literal["wall", "printed"] = "printed"


@dataclass(frozen=True)
class Pair:
    """A row of two sides, whose figure is the ratio a/b. `target` is its upper bound; None: none is set. `extra`: the
    row runs only if it is named."""

    id: str
    name: str
    a: Side
    b: Side
    target: float | None = None
    torchdistill: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Script:
    """The rows of another script. `names` are said if it gives none."""

    id: str
    path: str
    names: tuple[str, ...]
    extra: bool = False


def hop(side: str, size: str) -> Side:
    """A side of benchmarks/hop.py."""
    return Side((str(REPO / "benchmarks/hop.py"), side, size))


def clips(side: str, tree: Literal["here", "before"] = "here") -> Side:
    """A side of benchmarks/clips.py."""
    return Side((str(REPO / "benchmarks/clips.py"), side), tree)


def run(spec: str, *options: str, tree: Literal["here", "before"] = "here") -> Side:
    """A run of a spec in a new store, timed around the whole process, with the threads that it takes by itself."""
    command = ("-m", "stagedkd", "run", spec, "--no-dvc", "-q", *options)
    return Side(command, tree, threads=None, seconds="wall")


QUICKSTART = "specs/quickstart.yaml"
SHRUNK = ("data.train=256", "data.val=64", "data.test=64", "teacher.epochs=8", "student.epochs=8")
GRID = ("specs/ablations/losses.yaml", *(part for value in SHRUNK for part in ("--set", value)))
LARGE, SMALL = "hop, r3d_18 -> 0.9 M, 8x56x56, 20 joint epochs", "hop, the quickstart's size"
TABLE: tuple[Pair | Script, ...] = (
    Pair("hop-large", f"{LARGE} / torchdistill", hop("stagedkd", "large"), hop("torchdistill", "large"), 0.25, True),
    Pair(
        "hop-quickstart",
        f"{SMALL} / torchdistill",
        hop("stagedkd", "quickstart"),
        hop("torchdistill", "quickstart"),
        0.5,
        True,
    ),
    *(
        Pair(f"{row}-{other}", f"{name} / {text}", hop("stagedkd", size), hop(other, size), extra=True)
        for row, name, size in (("hop-large", LARGE, "large"), ("hop-quickstart", SMALL, "quickstart"))
        for other, text in (("loop", "bare loop"), ("loop-kept", "bare loop that keeps the teacher's outputs"))
    ),
    Script("steps", "steps.py", ("uncached joint step / bare loop, large", "uncached joint step / bare loop, toy")),
    Pair(
        "quickstart",
        "quickstart, wall / commit before",
        run(QUICKSTART),
        run(QUICKSTART, tree="before"),
        0.5,
    ),
    Pair(
        "grid",
        "grid of 12 cells, wall, two jobs / one stage after another",
        run(*GRID, "--jobs", "2"),
        run(*GRID, "--jobs", "1"),
        0.6,
    ),
    Script(
        "growth",
        "growth.py",
        ("dvc sync and run of 204 stages, seconds", "growth exponents", "resident memory"),
    ),
    Pair("cache", "clip cache build / plain PyAV loop, one thread", clips("cache"), clips("plain"), 1.0),
    Pair("cache-workers", "clip cache build, wall, two workers / one", clips("wall-2"), clips("wall-1"), 0.55),
    Pair("views", "views of 16x112x112 / commit before", clips("views"), clips("views", "before"), 0.25),
    Script(
        "threads",
        "threads.py",
        ("two threads beside a burning process / one thread", "two threads, quiet / commit before"),
    ),
    Script("gpu", "gpu.py", ("step on a GPU / bare compiled loop: see make check-gpu",)),
)


class Failed(Exception):
    """A side or a script failed."""


class Trees:
    """The trees that sides run: this one, and the commit before, which is unpacked at its first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def before(self) -> Path:
        """The commit before. Raises Failed: it is not in this clone."""
        packed = subprocess.run(("git", "-C", str(REPO), "archive", BEFORE), capture_output=True, check=False)
        if packed.returncode:
            raise Failed(f"commit {BEFORE} is not in this clone; run: git fetch --unshallow")
        tree = self.folder / "before"
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(tree, filter="data")
        return tree

    def of(self, name: Literal["here", "before"]) -> Path:
        return REPO if name == "here" else self.before


def environment(tree: Path, threads: int | None, **more: str) -> dict[str, str]:
    """The environment of a process that runs a tree."""
    values = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**values, **given, **more, "PYTHONPATH": str(tree)}


def execute(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Run Python with arguments; give what it prints. Raises Failed: it fails, with the last line of its errors."""
    done = subprocess.run((sys.executable, *command), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}: {lines[-1].strip()}")
    return done.stdout


def take(side: Side, trees: Trees) -> Row:
    """Run a side once. Returns its `seconds`, and what else it prints as JSON."""
    tree = trees.of(side.tree)
    with tempfile.TemporaryDirectory(dir=trees.folder) as name:
        for part in PROJECT:
            source, target = tree / part, Path(name) / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        started = time.perf_counter()
        printed = execute(side.command, Path(name), environment(tree, side.threads))
        wall = time.perf_counter() - started
    return {"seconds": wall} if side.seconds == "wall" else json.loads(printed.strip().splitlines()[-1])


def difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """The largest relative difference of the losses of two sides, by phase."""
    if a.keys() != b.keys():
        raise Failed(f"the sides have other phases: {sorted(a)} and {sorted(b)}")
    return max(abs(a[name] - b[name]) / max(abs(b[name]), 1e-12) for name in a)


def missing_torchdistill() -> str:
    """Why torchdistill's side cannot run; "" if it can."""
    try:
        version = importlib.metadata.version("torchdistill")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    how = f"pip install torchdistill=={TORCHDISTILL}"
    return "" if version == TORCHDISTILL else f"torchdistill {TORCHDISTILL} is needed, here it is {version}: {how}"


def measure_pair(pair: Pair, rounds: int, trees: Trees) -> Iterator[Row]:
    """The row of a pair."""
    row: Row = {"id": pair.id, "name": pair.name, "target": pair.target, "unit": "ratio"}
    if pair.torchdistill and (why := missing_torchdistill()):
        yield row | {"skipped": why}
        return
    ratios: list[float] = []
    seconds: list[tuple[float, float]] = []
    worst = 0.0
    for turn in range(rounds):
        sides = (pair.a, pair.b) if turn % 2 == 0 else (pair.b, pair.a)
        taken = {side: take(side, trees) for side in sides}
        a, b = taken[pair.a], taken[pair.b]
        if "losses" in a:
            worst = max(worst, difference(a["losses"], b["losses"]))
            if worst > AGREE:
                raise Failed(f"the losses of the sides differ by {worst:.1e}: {a['losses']} and {b['losses']}")
        ratios.append(a["seconds"] / b["seconds"])
        seconds.append((a["seconds"], b["seconds"]))
        print(f"  {pair.id}: {a['seconds']:.1f} s / {b['seconds']:.1f} s = {ratios[-1]:.3f}", flush=True)
    row |= {"median": median(ratios), "min": min(ratios), "max": max(ratios), "rounds": rounds, "seconds": seconds}
    row["holds"] = None if pair.target is None else row["median"] <= pair.target
    yield row | ({"note": f"losses agree to {worst:.0e}"} if worst else {})


def measure_script(script: Script, trees: Trees) -> Iterator[Row]:
    """The rows that another script gives."""
    if script.id == "gpu":
        yield {"id": script.id, "name": script.names[0], "skipped": "needs a CUDA GPU: run make check-gpu where one is"}
        return
    output = trees.folder / f"{script.id}.json"
    output.unlink(missing_ok=True)
    path = REPO / "benchmarks" / script.path
    if not path.is_file():
        raise Failed(f"benchmarks/{script.path} is not there")
    env = environment(REPO, None, STAGEDKD_BENCH_BEFORE=str(trees.before))
    execute((str(path), "--json", str(output)), REPO, env)
    if not output.is_file():
        raise Failed(f"benchmarks/{script.path} wrote no JSON")
    for row in json.loads(output.read_text("utf-8"))["rows"]:
        if "skipped" not in row and "median" not in row:
            raise Failed(f"benchmarks/{script.path}: the row {row['name']} has no median")
        yield {"id": script.id, "unit": "ratio", **row}


def measure(entry: Pair | Script, rounds: int, trees: Trees) -> list[Row]:
    """The rows of an entry of the table; a failure becomes a row that says it."""
    try:
        return list(measure_pair(entry, rounds, trees) if isinstance(entry, Pair) else measure_script(entry, trees))
    except Failed as failure:
        names = (entry.name,) if isinstance(entry, Pair) else entry.names
        return [{"id": entry.id, "name": name, "failed": str(failure)} for name in names]


def machine() -> Row:
    """The machine, and the versions of what the rows depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    commit = subprocess.run(
        ("git", "-C", str(REPO), "describe", "--always", "--dirty"), capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "av")}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
        "commit": commit,
        "before": BEFORE,
    }


def line(row: Row) -> str:
    """A row as a line of the table."""
    if "median" not in row:
        why = f"failed: {row['failed']}" if "failed" in row else f"cannot run here: {row['skipped']}"
        return f"{row['name']:<66} {why}"
    unit = "" if row.get("unit", "ratio") == "ratio" else f" {row['unit']}"
    numbers = "".join(f"{row[name]:>8.3g}" for name in ("median", "min", "max"))
    target = "        -" if row.get("target") is None else f" <= {row['target']:<5g}"
    holds = {True: "yes", False: "no", None: "-"}[row.get("holds")]
    return f"{row['name']:<66}{numbers}  {target}  {holds:<3}{unit} {row.get('note', '')}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[entry.id for entry in TABLE], metavar="ID")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [entry for entry in TABLE if (entry.id in options.rows if options.rows else not entry.extra)]
    facts, rows = machine() | {"load at the start": os.getloadavg()[0]}, list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        trees = Trees(Path(folder))
        for entry in chosen:
            print(f"{entry.id} ...", flush=True)
            rows += measure(entry, options.rounds, trees)
            facts["load at the end"] = os.getloadavg()[0]
            if options.json:  # after each entry, since an hour is long
                options.json.write_text(json.dumps({"rows": rows, "machine": facts}, indent=1) + "\n", "utf-8")
    print(f"\n{'':<66}{'median':>8}{'min':>8}{'max':>8}   target  holds")
    for row in rows:
        print(line(row))
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    sys.exit(1 if any("failed" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
