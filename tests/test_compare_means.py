"""Comparisons by labels of some axes: every row beside the one that differs in these alone, and the means over the
other axes, held against numpy."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plans
from stagedkd.report.comparison import Effort, average
from stagedkd.report.formats import as_csv, as_json, as_latex
from stagedkd.report.grid import GridResults, collect_grid
from stagedkd.report.grid_page import grid_headline, grid_page
from stagedkd.report.plots.settings import differences_plot
from stagedkd.report.terminal import grid_tables
from stagedkd.report.units import Score, Scores, mean_of, paired_units, pooled, summarize
from stagedkd.spec.load import load_experiment
from stagedkd.store.store import Store
from tests.conftest import Command
from tests.pages import GRID as EXCLUDED
from tests.pages import TOPS, make_grid, plain
from tests.test_compare_fairly import load, refused

GRID = """\
extends: tiny.yaml
student: {epochs: 3}
control: null
grid:
  seeds: 7
  axes: {recipe: [kd, ce], train.lr: [1e-3, 1e-2]}
compare: {baseline: recipe=kd, primary: recipe=ce}
"""
AXES = "grid: {axes: {$method: {kd: {recipe: kd}, ce: {recipe: ce}}, student.width: [4, 8], $size: {a: {}, '4': {}}}}\n"


Made: TypeAlias = tuple[Plans, Store]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_grid(tmp_path_factory.mktemp("grid"), GRID)


@pytest.fixture(scope="module")
def grid(made: Made) -> GridResults:
    return collect_grid(*made)


def by_hand(recipe: str) -> np.ndarray:
    """Seven seeds by two rates."""
    return np.array([TOPS[recipe, rate] for rate in ("0.001", "0.01")]).T


def sign_flips(differences: np.ndarray) -> float:
    n = len(differences)
    signs = np.array([[1 if code >> i & 1 else -1 for i in range(n)] for code in range(2**n)])
    return float(np.mean(np.abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12))


def test_a_mean_is_over_the_other_axes_and_paired_by_seed(grid: GridResults) -> None:
    kd, ce = (by_hand(name).mean(1) for name in ("kd", "ce"))
    assert [row.name for row in grid.means] == ["recipe=kd", "recipe=ce"] and grid.primary == "recipe=ce"
    for row, values in zip(grid.means, (kd, ce), strict=True):
        assert row.student is not None and row.student.n == 7
        half = stats.t.ppf(0.975, 6) * stats.sem(values)
        assert row.student.interval == pytest.approx((values.mean() - half, values.mean() + half))
        assert row.student.top1 == pytest.approx(values.mean())
    found = grid.comparisons["recipe=ce"]
    assert found.paired is not None and found.paired.mean == pytest.approx((ce - kd).mean())
    assert found.role == "primary" and found.p_holm == pytest.approx(sign_flips(ce - kd))


def test_rows_are_beside_their_own_baselines(grid: GridResults) -> None:
    assert set(grid.comparisons) == {"recipe=ce", "recipe=ce,train.lr=0.001", "recipe=ce,train.lr=0.01"}
    p_values = []
    for i, rate in enumerate(("0.001", "0.01")):
        found = grid.comparisons[f"recipe=ce,train.lr={rate}"]
        differences = (by_hand("ce") - by_hand("kd"))[:, i]
        assert found.paired is not None and found.paired.mean == pytest.approx(differences.mean())
        assert found.role == "exploratory" and grid.baselines[f"recipe=ce,train.lr={rate}"].labels["train.lr"] == rate
        p_values.append(sign_flips(differences))
    tested = [grid.comparisons[f"recipe=ce,train.lr={rate}"].p_holm for rate in ("0.001", "0.01")]
    low, high = min(p_values), max(p_values)
    assert sorted(p or 0 for p in tested) == pytest.approx([min(1, 2 * low), max(min(1, 2 * low), high)])


def test_a_seed_without_all_settings_is_in_no_mean(grid: GridResults) -> None:
    lost = "recipe=ce,train.lr=0.01,seed=2"
    cells = {name: cell for name, cell in grid.cells.items() if name != lost}
    means = {row.name: row for row in replace(grid, cells=cells, missing={lost: "gone"}).means}
    assert means["recipe=ce"].student is not None and means["recipe=ce"].student.n == 6
    assert means["recipe=ce"].missing == 1 and means["recipe=kd"].missing == 0


def test_a_mean_is_over_what_the_baseline_has_too(project: Path) -> None:
    """Staged lacks a rate: it is compared at the other one alone, and leaves the mean of the others as it is."""
    plans, store = make_grid(project, EXCLUDED + "compare: {baseline: recipe=kd, primary: recipe=ce}\n")
    grid = collect_grid(plans, store)
    assert grid.primary == "recipe=ce" and [(row.name, row.over) for row in grid.means] == [
        ("recipe=kd", 2),
        ("recipe=ce", 2),
    ]
    differences = (by_hand("ce") - by_hand("kd")).mean(1)
    found = grid.comparisons["recipe=ce"]
    assert found.paired is not None and found.paired.mean == pytest.approx(differences.mean())
    assert found.p_holm == pytest.approx(sign_flips(differences))
    staged = grid.comparisons["recipe=staged,train.lr=0.01"].paired
    assert staged is not None
    assert staged.mean == pytest.approx(np.mean(np.array(TOPS["staged", "0.01"]) - by_hand("kd")[:, 1]))


def test_a_row_without_a_baseline_says_so(project: Path) -> None:
    grid = collect_grid(*make_grid(project, EXCLUDED), "train.lr=1e-3")
    alone = grid.comparisons["recipe=staged,train.lr=0.01"]
    assert alone.finding == "-; the grid has no such baseline" and alone.p_holm is None
    assert "the grid has no such baseline" in printed(grid) and "the grid has no such baseline" in page(grid)
    assert sorted(grid.comparisons) == [
        "recipe=ce,train.lr=0.01",
        "recipe=kd,train.lr=0.01",
        "recipe=staged,train.lr=0.01",
        "train.lr=0.01",
    ]
    assert "correction for 3 comparisons" in " ".join(page(grid).split())  # one is not tested


def test_cells_that_are_picked_do_not_change_what_was_declared(made: Made, grid: GridResults) -> None:
    plans, store = made
    spec = store.root.parent / "specs" / "grid.yaml"
    experiment = load_experiment(spec, cells=["train.lr=1e-3"])
    some = collect_grid(compile_experiment(experiment), store)
    assert some.primary == "" and some.means == () and len(some.comparisons) == 1
    assert (
        "the declared comparison, recipe=ce with recipe=kd, is not shown: every comparison here is exploratory"
        in some.notes
    )
    seeds = load_experiment(spec, cells=[f"seed={i}" for i in range(6)])
    assert collect_grid(compile_experiment(seeds), store).primary == "recipe=ce"
    assert collect_grid(plans, store, "recipe=kd").primary == grid.primary == "recipe=ce"  # as it was declared
    assert collect_grid(plans, store, "recipe=ce").primary == ""


def test_what_cannot_be_compared_has_no_verdict(grid: GridResults) -> None:
    lost = {name: cell for name, cell in grid.cells.items() if "recipe=kd,train.lr=0.01" not in name}
    few = replace(grid, cells=lost, missing={name: "gone" for name in grid.cells if name not in lost})
    text = " ".join(page(few).split())
    assert "Over 2 settings of the other axes, recipe=ce cannot be compared with recipe=kd: no seed has both." in text
    assert "the baseline recipe=kd,train.lr=0.01 has no result" in few.notes
    seed = {name: cell for name, cell in grid.cells.items() if name.endswith("seed=0")}
    one = replace(grid, cells=seed, missing={name: "gone" for name in grid.cells if name not in seed})
    assert re.search(r"recipe=ce is not shown to differ from recipe=kd: -\d\.\d points\.", " ".join(page(one).split()))


def printed(grid: GridResults) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    for table in grid_tables(grid):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def page(grid: GridResults) -> str:
    return plain(grid_page(grid).text)


def test_every_form_of_the_report_has_the_means(made: Made, grid: GridResults, stagedkd: Command) -> None:
    mean = 100 * (by_hand("ce") - by_hand("kd")).mean()
    text = " ".join(printed(grid).split())
    assert f"ce (mean of 2) 7 {mean:+.1f}" in text and "kd (mean of 2) the baseline" in text
    assert "students minus those of recipe=kd, in points" in text
    html = " ".join(page(grid).split())
    assert "<h2>Comparison with recipe=kd</h2>" in html and "in the same setting of the other axes" in html
    assert "Over 2 settings of the other axes, recipe=ce is worse than recipe=kd: " in html
    assert "<td>(mean of 2)</td>" in html and f"<td>{mean:+.1f}</td>" in html and "<th>a (baseline)</th>" in html
    values: dict[str, Any] = json.loads(json.dumps(as_json(grid)))
    assert values["baseline"] == {"recipe": "kd"} and values["primary"] == "recipe=ce"
    assert [row["recipe"] for row in values["means"]] == ["kd", "ce"] and "train.lr" not in values["means"][0]
    assert [row["over"] for row in values["means"]] == [2, 2] and "over" not in values["rows"][0]
    assert "It is a baseline: settings that differ from it in recipe alone are compared with it." in html
    assert values["means"][1]["comparison"]["difference"] == pytest.approx(mean / 100)
    assert values["rows"][0]["comparison"] is None and values["rows"][2]["comparison"]["role"] == "exploratory"
    latex = [line for line in as_latex(grid).splitlines() if " & " in line]
    assert len({line.count("&") for line in latex}) == 1 and latex[-1].startswith("ce & (mean of 2) & 7 &")
    assert {row["recipe"] for row in csv.DictReader(io.StringIO(as_csv(grid)))} == {"kd", "ce"}
    plot = differences_plot(grid)
    assert plot is not None and "3 rows from recipe=kd" in plot.about
    folder = made[1].root.parent
    shown = stagedkd("show", str(folder / "specs" / "grid.yaml"), "--store", str(folder / "store"))
    assert shown.returncode == 0, shown.stderr
    assert "one comparison was declared, recipe=ce with recipe=kd; it is tested alone" in shown.stdout


def test_the_lead_says_what_was_declared_where_another_setting_is_best(project: Path) -> None:
    declared = "compare: {baseline: 'ce,0.001', primary: 'kd,0.001'}\n"
    grid = collect_grid(*make_grid(project, GRID[: GRID.index("compare")] + declared))
    mean = 100 * (by_hand("kd") - by_hand("ce"))[:, 0].mean()
    lead = grid_headline(grid)
    assert "recipe=kd,train.lr=0.01 has the highest" in lead[0] and len(lead) == 3
    said = "As was declared, recipe=kd,train.lr=0.001 is better than recipe=ce,train.lr=0.001"
    assert lead[2] == f"{said}: {mean:+.1f} points (p 0.0156)."
    best = replace(grid, cells={name: cell for name, cell in grid.cells.items() if "kd,train.lr=0.01," not in name})
    assert len(grid_headline(best)) == 2  # the second sentence says it


def test_a_baseline_of_all_axes_leaves_no_means(made: Made) -> None:
    grid = collect_grid(*made, "recipe=kd,train.lr=1e-2")
    assert grid.means == () and as_json(grid)["means"] == [] and "(mean" not in printed(grid) + page(grid)


# ---------------------------------------------------------------- what is pooled


def scores(name: str, values: dict[tuple[str, str], float]) -> Scores:
    found: dict[str, dict[tuple[str, str], Score]] = {}
    for at, top1 in values.items():
        found.setdefault(at[0], {})[at] = Score(f"{name}{at}", top1, 50)
    return found


@given(st.data())
def test_pooled_scores_are_the_means_over_settings(data: st.DataObject) -> None:
    """Against a plain loop: a unit has the repeats that all settings have, and every setting counts as much."""
    ats = [(str(seed), str(fold)) for seed in range(3) for fold in range(2)]
    tops = st.dictionaries(st.sampled_from(ats), st.floats(0, 1), min_size=1)
    settings = {name: data.draw(tops) for name in ("one", "two", "three")[: data.draw(st.integers(1, 3))]}
    found = pooled({name: scores(name, values) for name, values in settings.items()})
    expected: dict[str, list[float]] = {}
    for at in ats:
        if all(at in values for values in settings.values()):
            expected.setdefault(at[0], []).extend(values[at] for values in settings.values())
    assert {unit: mean_of(repeats) for unit, repeats in found.items()} == pytest.approx(
        {unit: np.mean(values) for unit, values in expected.items()}
    )


def test_a_network_of_two_settings_counts_in_both() -> None:
    """A teacher that settings share, and settings that are one experiment, leave the weights of the others as they are."""
    shared = {str(seed): {(str(seed), ""): Score("net", 0.5, 50)} for seed in range(3)}
    other = scores("o", {(str(seed), ""): 0.8 for seed in range(3)})
    both = pooled({"a": shared, "b": shared, "c": other})
    assert {unit: mean_of(repeats) for unit, repeats in both.items()} == pytest.approx(dict.fromkeys("012", 0.6))
    assert list(paired_units(both, both)) == [(pytest.approx(0.6), pytest.approx(0.6), True)] * 3
    once = summarize(pooled({"a": shared, "b": shared}), {})
    assert once is not None and once.n == 1  # one network, whatever the seed


def test_efforts_are_averages() -> None:
    assert average([Effort(2, 2, 3, 5), Effort(10, 20, 30, 7)]) == Effort(6, 11, 16, 6)
    assert average([Effort(2, None, 3), Effort(10, 20, None)]) == Effort(6, None, None)


# ---------------------------------------------------------------- what may be declared


@pytest.mark.parametrize(
    ("text", "baseline", "primary"),
    [
        ("{baseline: kd, primary: method = ce}", {"method": "kd"}, {"method": "ce"}),
        ("{baseline: student.width=4, primary: 8}", {"student.width": "4"}, {"student.width": "8"}),
        ("{baseline: 'a, kd', primary: 'size=4,ce'}", {"method": "kd", "size": "a"}, {"method": "ce", "size": "4"}),
        (
            "{baseline: 'kd,a,8', primary: 'ce,a,8'}",
            {"method": "kd", "student.width": "8", "size": "a"},
            {"method": "ce", "student.width": "8", "size": "a"},
        ),
    ],
)
def test_labels_of_some_axes_are_declared(
    project: Path, text: str, baseline: dict[str, str], primary: dict[str, str]
) -> None:
    declared = load(AXES + f"compare: {text}\n").declared
    assert declared is not None and (declared.baseline, declared.primary) == (baseline, primary)
    assert list(declared.baseline) == list(baseline)  # in the grid's order


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "{baseline: 4, primary: 8}",
            "compare.baseline: axes student.width and size have '4'",
            "write student.width=4",
        ),
        (
            "{baseline: kd, primary: 'ce,a'}",
            "compare.primary is of method, size, and the baseline of method",
            "name the same axes in both, or all axes",
        ),
        ("{baseline: kd, primary: meth=ce}", "compare.primary: the grid has no axis 'meth'", "did you mean 'method'?"),
        ("{baseline: kd, primary: method=kd}", "compare.primary is the baseline itself", "name another"),
        (
            "{baseline: 'kd, ce', primary: kd}",
            "compare.baseline: 'kd, ce' has two labels of axis 'method'",
            "give one label of each axis",
        ),
        (
            "{baseline: {method: kd}, primary: ce}",
            "compare.baseline: it must be a label, or axis=label,...",
            "for example compare: {baseline: kd, primary: staged}",
        ),
    ],
)
def test_labels_that_cannot_be_compared_are_refused(project: Path, text: str, message: str, hint: str) -> None:
    assert refused(AXES + f"compare: {text}\n")[1:] == (message, hint)


def test_what_the_grid_excludes_is_not_compared(project: Path) -> None:
    grid = "grid: {axes: {$m: {kd: {recipe: kd}, ce: {recipe: ce}, dkd: {recipe: dkd}}, student.width: [4, 8]},\n"
    few = grid + "  exclude: [{m: kd, student.width: 4}, {m: ce, student.width: 8}]}\n"
    assert refused(few + "compare: {baseline: 'kd,4', primary: ce}\n")[1:] == (
        "compare.baseline: there is no setting 'kd,4'",
        "the grid excludes it",
    )
    both = load(few + "compare: {baseline: kd, primary: ce}\n").declared  # each is one setting
    assert both is not None and both.baseline == {"m": "kd", "student.width": "8"}
    one = load(few.replace(", {m: ce, student.width: 8}", "") + "compare: {baseline: kd, primary: ce}\n").declared
    assert one is not None and one.primary == {"m": "ce", "student.width": "8"} and one.over == 1  # kd has one width
    apart = grid.replace("[4, 8]", "[4, 8, 12, 16]")
    apart += "  exclude: [{m: kd, student.width: 4}, {m: kd, student.width: 8}, {m: ce, student.width: 12}, {m: ce, student.width: 16}]}\n"
    assert refused(apart + "compare: {baseline: kd, primary: ce}\n")[1:] == (
        "compare.primary has no setting that the baseline has, too",
        "no two settings differ in these labels alone",
    )
