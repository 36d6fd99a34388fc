"""Compare two settings of tables of evidence that are kept, for the differences in docs/results.md that no table has.

    python benchmarks/pairs.py few_clips:method=staged few_clips_methods:method=hint
    python benchmarks/pairs.py substages:distill.pairing=correlation substages:distill.pairing=auto student.substages=4
    python benchmarks/pairs.py few_clips_all:method=kd few_clips_all:network=teacher without=3,7

A side is a folder of results/evidence and labels of its axes, or network=teacher (else the students). Further labels
hold for both sides, and without=... leaves units out. Cells that are alike in all other axes are paired. The unit is
the seed, as the mean of its cells, if it has all of them; in a table over folds it is the group of clips. It prints the
difference with its 95% BCa interval and the p of a sign-flip test, not corrected.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evidence import KEPT, between, percent

from stagedkd.report.comparison import p_text
from stagedkd.report.statistics import paired
from stagedkd.spec.grid import REPEATS


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(compare(sys.argv[1], sys.argv[2], sys.argv[3:]))


def compare(first: str, second: str, shared: Sequence[str] = ()) -> str:
    """Return the difference of two sides in words.

    Args:
        first, second: NAME:axis=label,axis=label.
        shared: axis=label for both sides; without=1,8 leaves these seeds (or groups) out.
    """
    both = labels(shared)
    without = both.pop("without", "").split(",")
    chosen = [labels(side.partition(":")[2].split(",")) for side in (first, second)]
    sides = [
        cells(side.partition(":")[0], {**own, **both}, {*chosen[0], *chosen[1], *both})
        for side, own in zip((first, second), chosen, strict=True)
    ]
    common = [key for key in sides[0] if key in sides[1] and key[0] not in without]
    if not common:
        sys.exit("the two sides have no cell in common")
    kinds = {free for _, free in common}
    units = sorted({unit for unit, _ in common if all((unit, free) in common for free in kinds)})
    if not units:
        sys.exit("no seed or group has every cell on both sides")
    means = [[fmean(side[key] for key in common if key[0] == unit) for unit in units] for side in sides]
    pair = paired(*means)
    interval = f" {between(list(pair.interval))}" if pair.interval else ""
    p = f", p {p_text(pair.p)}" if pair.p is not None else ""
    levels = " and ".join(percent(fmean(values)) for values in means)
    return f"{100 * pair.mean:+.1f}{interval}{p}, {len(units)} pairs ({levels})"


def labels(words: Sequence[str]) -> dict[str, str]:
    return {axis: label for axis, _, label in (word.partition("=") for word in words if word)}


def cells(name: str, wanted: Mapping[str, str], named: set[str]) -> dict[tuple[str, tuple[str, ...]], float]:
    """The accuracies of a side, by unit and by the labels of the axes that neither side names."""
    rows = accuracies(name)
    axes = [axis for axis in rows[0] if axis not in ("unit", "network", "top1")]
    if unknown := {*wanted} - {*axes, "network"}:
        sys.exit(f"{name} has no axis {', '.join(sorted(unknown))}")
    wanted = {"network": "student", **wanted}
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for row in (row for row in rows if all(row[axis] == label for axis, label in wanted.items())):
        key = (row["unit"], tuple(row[axis] for axis in axes if axis not in named))
        if found.setdefault(key, float(row["top1"])) != float(row["top1"]):  # a teacher is in many cells, alike in all
            sys.exit(f"{name}: several cells fit; name a label of {', '.join(named)}")
    return found


def accuracies(name: str) -> list[dict[str, str]]:
    """The axes, the unit, the network and its accuracy: of every cell, or of every group of clips and setting."""
    if not (KEPT / name).is_dir():
        sys.exit(f"there is no table {name} in results/evidence: {', '.join(sorted(f.name for f in KEPT.iterdir()))}")
    metrics: dict[str, Any] = json.loads((KEPT / name / "metrics.json").read_text("utf-8"))
    axes = [axis for axis in metrics["axes"] if axis not in REPEATS]
    if "fold" in metrics["axes"]:
        return [
            {**{axis: row[axis] for axis in axes}, "unit": group, "network": "student", "top1": str(top1)}
            for row in metrics["rows"]
            for group, top1 in row.get("by_group", {}).items()  # {} of a setting that has not run
        ]
    with (KEPT / name / "cells.csv").open(encoding="utf-8", newline="") as file:
        return [
            {**{axis: row[axis] for axis in axes}, "unit": row["seed"], "network": row["network"], "top1": row["top1"]}
            for row in csv.DictReader(file)
        ]


if __name__ == "__main__":
    main()
