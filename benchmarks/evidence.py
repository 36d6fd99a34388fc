"""Keep the results of a table of evidence, and print the table from what is kept.

    python benchmarks/evidence.py keep few_clips [SET ...]   # of specs/evidence/few_clips.yaml, which has run
    python benchmarks/evidence.py table few_clips            # the Markdown of docs/results.md; a test compares them

`keep` writes to results/evidence/NAME/: metrics.json (rows, comparisons and cells), cells.csv (a row for every network
of every cell), and, where the spec declares a comparison, the students of its two settings with SHA256SUMS. Git has the
first two and the sums; DVC has the students. `stagedkd reproduce` takes such a student and rebuilds it. SET changes the
evaluation alone: evaluate.frames=shuffled gives NAME few_clips+evaluate.frames=shuffled, with the same students.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from stagedkd.experiment.run import compiled
from stagedkd.plan.runtime import load_runtime
from stagedkd.report.comparison import p_text
from stagedkd.report.grid import GridResults
from stagedkd.report.write import report_grid
from stagedkd.spec.grid import REPEATS
from stagedkd.spec.load import load_experiment
from stagedkd.stages.context import Silent
from stagedkd.store.store import Store

REPO = Path(__file__).resolve().parent.parent
KEPT = REPO / "results" / "evidence"
FILES = ("metrics.json", "cells.csv")
HEADS = ("method", "n", "top-1 [95%]", "IQM", "failed", "compute", "labels", "minus {} [BCa 95%]", "p", "finding")


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("keep", "table"):
        sys.exit(__doc__)
    what, name, *overrides = sys.argv[1:]
    print(table(keep(name, overrides) if what == "keep" else name))


def keep(spec: str, overrides: Sequence[str]) -> str:
    """Write what a grid leaves behind to the folder that git and DVC keep; return its name."""
    if any(not override.startswith("evaluate.") for override in overrides):
        sys.exit("SET may change the evaluation alone, such as evaluate.frames=shuffled")
    runtime = load_runtime(REPO)
    plans = compiled(load_experiment(REPO / "specs" / "evidence" / f"{spec}.yaml", overrides), runtime, Silent())
    grid = report_grid(plans, runtime)
    folder = KEPT / plans.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copyfile(runtime.folder("results") / plans.name / file, folder / file)
    if grid.primary and not overrides:
        keep_students(grid, Store(runtime.folder("store")), folder)
    return plans.name


def keep_students(grid: GridResults, store: Store, folder: Path) -> None:
    """Write the students of the baseline and of the primary setting, and their sums."""
    shutil.rmtree(folder / "students", ignore_errors=True)  # those of settings that the spec no longer has
    (folder / "students").mkdir()
    declared = grid.plans.declared
    compared = [declared.baseline, declared.primary] if declared else []
    sums: list[str] = []
    for cell, results in sorted(grid.cells.items()):
        if any(labels.items() <= grid.plans.labels[cell].items() for labels in compared):
            student = folder / "students" / f"{cell}.safetensors"
            made = store.artifact(grid.plans.cells[cell].stage(results.student.name))
            student.write_bytes(made.read("student.safetensors"))
            sums.append(f"{hashlib.sha256(student.read_bytes()).hexdigest()}  students/{student.name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums), "utf-8")


def table(name: str) -> str:
    """The table of a kept grid, in Markdown: a row for every setting, fractions in percent, differences in points. A
    control of frames has the accuracies alone: what was declared is not about it. One setting is compared with none."""
    metrics: dict[str, Any] = json.loads((KEPT / name / FILES[0]).read_text("utf-8"))
    with (KEPT / name / FILES[1]).open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    axes = [axis for axis in metrics["axes"] if axis not in REPEATS]
    baseline = ",".join(metrics["baseline"].values())
    heads = [head.format(baseline) for head in HEADS][: 3 if "+" in name else len(HEADS) if baseline else 7]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in (*metrics["rows"], *metrics.get("means", ())):
        labels = {axis: row[axis] for axis in axes if axis in row}
        own = [c for c in cells if c["network"] == "student" and all(c[axis] == labels[axis] for axis in labels)]
        title = ",".join(labels.get(axis, f"(mean of {row.get('over')})") for axis in axes)
        lines.append("| " + " | ".join((title or "student", *figures(row, own))[: len(heads)]) + " |")
    return "\n".join([*lines, "", teachers(metrics)])


def figures(row: dict[str, Any], cells: list[dict[str, str]]) -> tuple[str, ...]:
    """The figures of a setting."""
    student, pair = row["student"], row["comparison"]
    if not student:
        return ("0", *[""] * 8)
    labels = sorted({int(cell["labelled_clips"]) for cell in cells})
    known = (
        str(student.get("seeds") or student["groups"]),
        f"{percent(student['top1'])} {between(student['interval95'])}",
        percent(student["iqm"]) if student["iqm"] is not None else "",
        str(student["failed_seeds"]),
        f"{row['train_flops'] / 1e12:.2f} TFLOPs" if row["train_flops"] else "",
        " to ".join(str(count) for count in dict.fromkeys((labels[0], labels[-1]))),
    )
    if not pair or pair["difference"] is None:
        return (*known, "", "", pair["remark"] if pair else "")
    difference = f"{100 * pair['difference']:+.1f}" + (f" {between(pair['interval95'])}" if pair["interval95"] else "")
    verdict = ": ".join(filter(None, (pair["role"], pair["verdict"])))
    small = ["below 1 point"] * pair["below_smallest_effect"]
    return (*known, difference, p_text(pair["p_holm"]), "; ".join([verdict, *small, *pair["unequal"]]))


def teachers(metrics: dict[str, Any]) -> str:
    """What the rows' teachers reach, and what the numbers are measured on."""
    found = {
        f"{percent(row['teacher']['top1'])} {between(row['teacher']['interval95'])}"
        for row in metrics["rows"]
        if row["teacher"]
    }
    measured = f"Top-1 in % on the {metrics['split']} split; intervals: {metrics['intervals']}"
    return fill(f"{measured}. Teachers: {', '.join(sorted(found))}.", 120, break_on_hyphens=False)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def between(interval: list[float]) -> str:
    return f"[{', '.join(percent(edge) for edge in interval)}]"


if __name__ == "__main__":
    main()
