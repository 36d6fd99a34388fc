"""The tables of docs/results.md are those of the results that are kept, figure by figure."""

import csv
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import KEPT, between, table
from stagedkd.spec.grid import REPEATS
from stagedkd.spec.load import load_experiment

REPO = Path(__file__).resolve().parent.parent
NAMES = sorted(folder.name for folder in KEPT.iterdir()) if KEPT.is_dir() else []


def test_there_is_evidence() -> None:
    """Without it, the tests below would have nothing to fail on."""
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_table_of_what_is_kept(name: str) -> None:
    text = (REPO / "docs" / "results.md").read_text("utf-8")
    assert table(name) in text
    spec, *overrides = name.split("+")
    assert " ".join([f"stagedkd run specs/evidence/{spec}.yaml", *(f"--set {value}" for value in overrides)]) in text


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_the_means_of_the_cells(name: str) -> None:
    """An independent sum over cells.csv gives the means, the differences and the numbers of units of metrics.json."""
    metrics: dict[str, Any] = json.loads((KEPT / name / "metrics.json").read_text("utf-8"))
    axes = [axis for axis in metrics["axes"] if axis not in REPEATS]
    students: dict[tuple[str, ...], dict[str, float]] = {}
    with (KEPT / name / "cells.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["network"] == "student":
                assert row["split"] == metrics["split"]
                repeat = " ".join(row.get(axis, "") for axis in REPEATS)
                students.setdefault(tuple(row[axis] for axis in axes), {})[repeat] = float(row["top1"])
    spec = load_experiment(REPO / "specs" / "evidence" / f"{name.split('+')[0]}.yaml").cells[0].spec
    assert metrics["split"] == spec.evaluate.split  # as it was declared
    for row in (row for row in metrics["rows"] if row["student"]):  # the table says n = 0 of a setting that has not run
        own = students[tuple(row[axis] for axis in axes)]
        if "by_group" not in row:
            assert row["student"]["seeds"] == len(own)
        else:  # of sets whose groups have as many clips each, and folds as many groups: the means are those of cells
            assert row["student"]["groups"] == len(row["by_group"])
            assert row["student"]["top1"] == pytest.approx(sum(row["by_group"].values()) / len(row["by_group"]))
        assert row["student"]["top1"] == pytest.approx(sum(own.values()) / len(own))
        if row["comparison"]:
            baseline = students[tuple({**row, **metrics["baseline"]}[axis] for axis in axes)]
            both = own.keys() & baseline.keys()
            mean = sum(own[repeat] - baseline[repeat] for repeat in both) / len(both)
            assert row["comparison"]["difference"] == pytest.approx(mean)
    for mean_row in metrics.get("means", ()):
        labels = {axis: mean_row[axis] for axis in axes if axis in mean_row}
        over = [own for name, own in students.items() if labels.items() <= dict(zip(axes, name, strict=True)).items()]
        assert len(over) == mean_row["over"]
        whole = set.intersection(*(set(own) for own in over))
        means = [sum(own[repeat] for own in over) / len(over) for repeat in whole]
        assert mean_row["student"]["top1"] == pytest.approx(sum(means) / len(means))


@pytest.mark.parametrize("name", [name for name in NAMES if "+" not in name])
def test_every_compared_student_has_its_sum(name: str) -> None:
    metrics: dict[str, Any] = json.loads((KEPT / name / "metrics.json").read_text("utf-8"))
    if not metrics["primary"]:
        assert not (KEPT / name / "students.dvc").exists()
        return
    sums = (KEPT / name / "SHA256SUMS").read_text("utf-8").splitlines()
    baseline = [f"{axis}={label}" for axis, label in metrics["baseline"].items()]
    compared = [set(baseline), set(metrics["primary"].split(","))]
    wanted = {cell for cell in metrics["cells"] if any(labels <= set(cell.split(",")) for labels in compared)}
    found = {match[1] for line in sums if (match := re.fullmatch(r"[0-9a-f]{64}  students/(.+)\.safetensors", line))}
    assert found == wanted and len(found) == len(sums)
    assert (KEPT / name / "students.dvc").is_file()


def test_a_fraction_is_printed_in_percent() -> None:
    assert between([0.1234, 0.5]) == "[12.3, 50.0]"


@pytest.mark.parametrize("name", [name for name in NAMES if (KEPT / name / "students.dvc").exists()])
def test_pairs_finds_the_declared_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command for differences in the text gives those of the table, too."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    pairs = importlib.import_module("pairs")
    metrics: dict[str, Any] = json.loads((KEPT / name / "metrics.json").read_text("utf-8"))
    compared = [*metrics.get("means", ()), *metrics["rows"]]
    primary = next(row for row in compared if row["comparison"] and row["comparison"]["role"] == "primary")
    baseline = ",".join(f"{axis}={label}" for axis, label in metrics["baseline"].items())
    found = pairs.compare(f"{name}:{metrics['primary']}", f"{name}:{baseline}")
    row = primary["comparison"]
    assert found.startswith(f"{100 * row['difference']:+.1f} {between(row['interval95'])}, p "), found
