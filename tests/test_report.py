"""The report: what a comparison of settings shows, against brute force; compute, correlations and refinements."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from stagedkd.errors import UsageError
from stagedkd.plan.graph import Graph, Plans, Stage
from stagedkd.plan.lock import Lock
from stagedkd.plan.work import RefineWork, WeakenWork
from stagedkd.report.collect import collect, read_refinements
from stagedkd.report.comparison import compute_notes, flops_text, p_text, power_notes
from stagedkd.report.formats import as_csv, as_json, as_latex
from stagedkd.report.grid import GridResults, collect_grid, find_baseline, ranges
from stagedkd.report.grid_page import grid_page
from stagedkd.report.page import experiment_page
from stagedkd.report.plots.maps import correlation_maps
from stagedkd.report.results import Correlation, NetworkResult, Refinement, Results
from stagedkd.report.statistics import Paired, holm, paired
from stagedkd.report.terminal import grid_tables, results_tables
from stagedkd.report.units import Scores, over_seeds
from stagedkd.report.write import as_json as results_json
from stagedkd.spec.schema import Clip, Labels
from stagedkd.store.store import Store
from tests.conftest import Command
from tests.pages import FLOPS, MATRIX, TOPS, compare_with, make_grid, plain

RIGHT = st.integers(0, 20)  # right clips of 20: small numbers, so that many sums tie
RUNS = st.lists(st.tuples(RIGHT, RIGHT), min_size=2, max_size=12)


def _shares(rows: Sequence[tuple[int, int]]) -> tuple[list[float], list[float]]:
    return [a / 20 for a, _ in rows], [b / 20 for _, b in rows]


# Statistics


@given(st.lists(st.tuples(st.integers(4, 396), st.integers(-4, 4)), min_size=2, max_size=12))
@example([(288, 3), (83, -1), (114, 1), (386, 1), (79, 2), (394, -3), (341, -2)])  # ties that rounding would part
@settings(max_examples=60)
def test_p_is_the_share_of_sign_flips_that_are_as_extreme(rows: list[tuple[int, int]]) -> None:
    steps = np.array([step for _, step in rows])
    signs = np.array(list(itertools.product([-1, 1], repeat=len(rows))))
    exact = (abs(signs @ steps) >= abs(steps.sum())).mean()  # in whole clips: no rounding, every tie a tie
    found = paired([(right + step) / 400 for right, step in rows], [right / 400 for right, _ in rows])
    assert found.p == pytest.approx(exact, abs=1e-12)


def test_many_pairs_are_tested_by_random_sign_flips() -> None:
    steps = np.random.default_rng(5).normal(0.004, 0.02, 40)
    found = paired((0.5 + steps).tolist(), [0.5] * 40)
    signs = np.random.default_rng(6).choice([-1, 1], (200_000, 40))
    share = (abs(signs @ steps) >= abs(steps.sum())).mean()
    assert found.p == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 9999)) and 0.05 < share < 0.5
    assert paired([0.9 + i / 1000 for i in range(40)], [0.1] * 40).p == pytest.approx(2 / 10_000)  # never 0


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _normal_quantile(p: float) -> float:
    low, high = -9.0, 9.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _normal_cdf(middle) < p else (low, middle)
    return low


def _bca(d: np.ndarray, draws: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """BCa and plain percentile interval of a mean, from Efron & Tibshirani 1993, equations 14.9, 14.14, 14.15."""
    n, dice = len(d), np.random.default_rng(99)
    means = np.sort(d[dice.integers(0, n, (draws, n))].mean(1))
    z0 = _normal_quantile((means < d.mean()).mean())
    left_out = np.array([np.delete(d, i).mean() for i in range(n)])
    u = left_out.mean() - left_out
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    ends = []
    for z in (-1.959963984540054, 1.959963984540054):
        ends.append(np.quantile(means, _normal_cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))))
    return (ends[0], ends[1]), (np.quantile(means, 0.025), np.quantile(means, 0.975))


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_bca(seed: int) -> None:
    d = np.random.default_rng(seed).exponential(0.03, 12) - 0.01  # skewed: BCa and percentiles differ
    found = paired((0.5 + d).tolist(), [0.5] * 12)
    expected, percentile = _bca(d, 300_000)
    error = d.std() / math.sqrt(12)
    assert found.interval == pytest.approx(expected, abs=0.15 * error) and found.n == 12
    assert found.mean == pytest.approx(d.mean(), abs=1e-12)
    assert max(abs(np.subtract(percentile, expected))) > 0.2 * error  # so the test can tell them apart


@given(RUNS, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_a_comparison_is_antisymmetric_and_knows_no_order(rows: list[tuple[int, int]], dice: random.Random) -> None:
    values, baseline = _shares(rows)
    found, turned = paired(values, baseline), paired(baseline, values)
    assert turned.mean == -found.mean and turned.p == found.p and turned.remark == found.remark
    assert found.interval and turned.interval == (-found.interval[1], -found.interval[0])
    dice.shuffle(rows)
    assert paired(*_shares(rows)) == found
    steps = [a - b for a, b in zip(values, baseline, strict=True)]
    low, high = found.interval
    assert min(steps) - 1e-12 <= low <= high <= max(steps) + 1e-12 and 0 < found.p <= 1  # type: ignore[operator]


def test_degenerate_pairs_are_said_and_not_invented() -> None:
    assert paired([0.6], [0.5]) == Paired(0.6 - 0.5, None, None, 1, "one pair: no interval and no test")
    same = paired([0.3, 0.4, 0.5], [0.3, 0.4, 0.5])
    assert same == Paired(0.0, (0.0, 0.0), 1.0, 3, "no pair differs")
    shifted = paired([0.3, 0.4, 0.7, 0.9, 0.2], [0.2, 0.3, 0.6, 0.8, 0.1])  # 0.1 each, but for rounding
    assert shifted.interval == (shifted.mean, shifted.mean) and shifted.mean == pytest.approx(0.1)
    assert shifted.p == 2 / 32 and shifted.remark.startswith("all differences are equal")
    cancelled = paired([0.3, 0.4], [0.4, 0.3])
    assert cancelled.p == 1 and cancelled.mean == pytest.approx(0, abs=1e-15)
    for values, baseline in (([], []), ([0.1], [0.1, 0.2])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired(values, baseline)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4, 0.03]) == pytest.approx([0.8, 0.8, 0.09])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_is_never_milder_than_no_correction_nor_harsher_than_bonferroni(
    p: list[float],
) -> None:
    found = holm(p)
    in_order = [adjusted for _, adjusted in sorted(zip(p, found, strict=True))]
    assert in_order == sorted(in_order)
    assert all(min(1.0, one) <= both <= min(1.0, len(p) * one) for one, both in zip(p, found, strict=True))
    assert min(found) == min(1.0, len(p) * min(p))


# Settings against a baseline


def _network(key: str, top1: float, name: str = "student", flops: int | None = 10**12) -> NetworkResult:
    return NetworkResult(
        name=name,
        arch="resnet3d",
        top1=top1,
        interval=(top1, top1),
        top5=None,
        ece=0.0,
        per_class={},
        params=100,
        flops=10,
        labels="same",
        labelled_clips=1,
        training_clips=2,
        steps=3,
        train_flops=flops,
        seconds=None,
        latency=None,
        key=key,
    )


def _scores(networks: Mapping[str, NetworkResult]) -> Scores:
    by_repeat = {(seed, ""): network for seed, network in networks.items()}
    return over_seeds(by_repeat, dict.fromkeys(by_repeat, 100))


def _students(name: str, tops: Sequence[float]) -> Scores:
    return _scores({str(i): _network(f"{name}{i}", top1) for i, top1 in enumerate(tops)})


def test_verdicts_follow_the_corrected_p_and_small_effects_are_said() -> None:
    base = [0.5 + i / 100 for i in range(10)]
    jitter = [0.001 * (i % 3) for i in range(10)]
    found = compare_with(
        {
            "base": _students("a", base),
            "up": _students("b", [x + 0.05 + j for x, j in zip(base, jitter, strict=True)]),
            "down": _students("c", [x - 0.02 - j for x, j in zip(base, jitter, strict=True)]),
            "little": _students("d", [x + 0.002 + j for x, j in zip(base, jitter, strict=True)]),
            "null": _students("e", [x + (-1) ** i * 0.03 for i, x in enumerate(base)]),
        },
        "base",
    )
    assert list(found) == ["up", "down", "little", "null"]
    assert [c.verdict for c in found.values()] == ["better", "worse", "better", "not shown"]
    assert [c.small for c in found.values()] == [False, False, True, True]
    assert found["little"].finding == "better; below 1 point" and found["up"].finding == "better"
    assert found["up"].p_holm == pytest.approx(4 * 2 / 1024) and found["null"].p_holm == 1
    exact = compare_with({"a": _students("a", [0.28] * 3), "b": _students("b", [0.29] * 3)}, "a")["b"]
    assert not exact.small  # 0.29 - 0.28 is a point, and a little less in floating point


def test_six_seeds_are_shown_alone_and_not_among_two() -> None:
    base, more = _students("a", [0.5] * 6), _students("b", [0.6 + i / 100 for i in range(6)])
    alone = compare_with({"a": base, "b": more}, "a")
    assert alone["b"].verdict == "better" and list(power_notes(alone)) == []
    two = compare_with({"a": base, "b": more, "c": _students("c", [0.6 + i / 100 for i in range(6)])}, "a")
    assert {c.verdict for c in two.values()} == {"not shown"}
    assert list(power_notes(two)) == [
        "6 seeds cannot reach p < 0.05 in 2 comparisons: the smallest corrected p is 0.0625"
    ]
    five = compare_with({"a": base, "b": _students("b", [0.6, 0.7, 0.8, 0.9, 0.95]), "c": _students("c", [0.1])}, "a")
    assert list(power_notes(five)) == [
        "1 seed cannot show a difference: it gives no interval and no test",
        "5 seeds cannot reach p < 0.05: the smallest p is 0.0625",
    ]
    assert five["c"].p_holm is None and five["c"].verdict == "not shown" and five["b"].p_holm == 2 / 32


def test_pairs_are_of_one_seed_and_shared_networks_count_once() -> None:
    base = _students("a", [0.1, 0.2, 0.3])
    other = _scores({"2": _network("z2", 0.6), "1": _network("z1", 0.4), "7": _network("z7", 0.9)})
    found = compare_with({"base": base, "other": other}, "base")["other"]
    assert found.paired and (found.paired.n, found.paired.mean) == (2, pytest.approx(0.25))
    shared = _scores({seed: _network("x", 0.5) for seed in "012"})
    twice = {seed: _network("y", 0.7) for seed in "012"}
    once = compare_with({"base": shared, "other": _scores(twice)}, "base")["other"]
    assert once.paired and once.paired.n == 1 and once.p_holm is None
    mixed = compare_with({"base": shared, "other": _scores(twice | {"2": _network("y2", 0.9)})}, "base")["other"]
    assert mixed.paired and (mixed.paired.n, mixed.paired.mean) == (2, pytest.approx(0.3))
    rest = compare_with(
        {"base": base, "same": dict(base), "none": _scores({"9": _network("q", 0.5)}), "other": other}, "base"
    )
    assert [(c.verdict, c.remark) for c in rest.values()] == [
        ("-", "the same networks"),
        ("-", "no seed has both"),
        ("not shown", ""),
    ]
    assert rest["other"].p_holm == 0.5  # what has no test is no part of the family


def test_unequal_compute_is_said_above_a_twentieth() -> None:
    compute: Mapping[str, int | None] = {"a": 100, "b": 105, "c": 106, "d": 94, "e": None, "f": 95, "g": 300}
    said = "compared at unequal compute of all hops"
    assert list(compute_notes(compute, dict.fromkeys("bcdefg", "a"))) == [
        f"{said}: c has 1.06 x, d has 0.94 x, g has 3 x that of a"
    ]
    assert not list(compute_notes({"a": 100, "b": 104}, {"b": "a"}))
    assert not list(compute_notes({"a": None, "b": 7}, {"b": "a"}))
    assert list(compute_notes(compute, {"b": "a", "c": "d"})) == [f"{said}: c has 1.13 x that of d"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 TFLOPs"),
        (1_234_000_000_000, "1.23 TFLOPs"),
        (12 * 10**12, "12.0 TFLOPs"),
        (999 * 10**12, "999 TFLOPs"),
        (9_996 * 10**11, "1.00 PFLOPs"),
        (5_678 * 10**12, "5.68 PFLOPs"),
        (123_456 * 10**15, "123,000 PFLOPs"),
        (4_560_000, "0.00000456 TFLOPs"),
        (9_996 * 10**9, "10.0 TFLOPs"),
    ],
)
def test_compute_has_three_digits(count: int | None, text: str) -> None:
    assert flops_text(count) == text


# A grid in a store, made by hand


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plans, Store]:
    return make_grid(tmp_path_factory.mktemp("grid"))


def page(results: Results) -> str:
    return plain(experiment_page(results).text)


def _printed(tables: Any) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_are_compared_with_the_baseline_over_seeds(made: tuple[Plans, Store]) -> None:
    found = collect_grid(*made)
    assert found.baseline_name == "recipe=kd,train.lr=0.001" and len(found.comparisons) == 4
    low = found.comparisons["recipe=ce,train.lr=0.001"]
    steps = np.subtract(TOPS["ce", "0.001"], TOPS["kd", "0.001"])
    assert low.paired and low.paired.mean == pytest.approx(steps.mean()) and low.paired.p == 2 / 128
    names = {row: found.comparisons[f"recipe={row[0]},train.lr={row[1]}"] for row in TOPS if row != ("kd", "0.001")}
    p_values = {row: c.paired.p for row, c in names.items() if c.paired and c.paired.p is not None}
    # three rows are at the smallest p of seven seeds, 1/64: four comparisons make it 4/64, which shows nothing
    assert sorted(p_values.values())[:3] == [2 / 128] * 3
    assert next(iter(names.values())).p_holm == 4 * 2 / 128 and {c.verdict for c in names.values()} == {"not shown"}
    assert names["kd", "0.01"].small and not names["staged", "0.01"].small
    assert "7 seeds cannot reach p < 0.05 in 4 comparisons: the smallest corrected p is 0.0625" in found.notes
    other = collect_grid(*made, "recipe=staged")
    assert other.baseline_name == "recipe=staged,train.lr=0.01"
    mirror = other.comparisons["recipe=kd,train.lr=0.001"].paired
    plain = found.comparisons["recipe=staged,train.lr=0.01"].paired
    assert mirror and plain and plain.interval and mirror.mean == -plain.mean
    assert mirror.interval == (-plain.interval[1], -plain.interval[0])


def test_compute_is_summed_over_hops_and_the_teachers_is_apart(made: tuple[Plans, Store]) -> None:
    found = collect_grid(*made)
    flops = {row.name: (row.train_flops, row.teacher_flops) for row in found.rows}
    assert flops["recipe=ce,train.lr=0.01"] == (FLOPS["distill"], FLOPS["teach"])
    assert flops["recipe=staged,train.lr=0.01"] == (2 * FLOPS["distill"], FLOPS["teach"])  # one assistant
    note = (
        "compared at unequal compute of all hops: recipe=staged,train.lr=0.01 has 2 x that of recipe=kd,train.lr=0.001"
    )
    assert note in found.notes


def test_every_format_has_the_comparison_and_the_compute(made: tuple[Plans, Store]) -> None:
    found = collect_grid(*made)
    mean = 100 * np.subtract(TOPS["staged", "0.01"], TOPS["kd", "0.001"]).mean()
    text = _printed(grid_tables(found))
    assert re.search(rf"staged +0\.01 +7 +\+{mean:.1f} +\+\d+\.\d to \+\d+\.\d +0\.0156 +0\.0625 +not shown", text), (
        text
    )
    assert re.search(r"kd +0\.01 +7 .* not shown; below 1 point", text) and re.search(r"kd +0\.001 +the baseline", text)
    assert "3.00 TFLOPs" in text and text.count("1.50 TFLOPs") == 4 and text.count("5.00 PFLOPs") == 5
    assert "students minus those of recipe=kd,train.lr=0.001" in text
    html = plain(grid_page(found).text)
    assert (
        "<h2>Comparison with recipe=kd,train.lr=0.001</h2>" in html and html.count("not shown") == 5
    )  # once in the headline
    assert (
        f"<td>+{mean:.1f}</td>" in html and "3.00 TFLOPs" in html and "2 x that of" in html and "the baseline" in html
    )
    values = json.loads(json.dumps(as_json(found)))
    row = values["rows"][-1]
    assert (row["recipe"], row["train_flops"], row["teacher_train_flops"]) == ("staged", 3 * 10**12, 5 * 10**15)
    assert row["comparison"]["verdict"] == "not shown" and row["comparison"]["difference"] == pytest.approx(mean / 100)
    assert row["comparison"]["pairs"] == 7 and len(row["comparison"]["interval95"]) == 2
    assert values["baseline"] == {"recipe": "kd", "train.lr": "0.001"} and values["rows"][0]["comparison"] is None
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert {r["train_flops"] for r in rows if r["network"] == "student"} == {str(FLOPS["distill"])}
    latex = as_latex(found)
    lines = [line for line in latex.splitlines() if " & " in line]
    assert len({line.count("&") for line in lines}) == 1 and "difference & p (Holm)" in lines[0]
    assert lines[1].endswith(r"-- & -- \\") and f"${mean:+.1f}$ [$+" in lines[-1] and lines[-1].endswith(r"0.0625 \\")
    assert "% differences: students minus those of recipe=kd,train.lr=0.001" in latex
    assert f"{{{'l' * 2}{'r' * (lines[0].count('&') - 1)}}}" in latex


def test_what_is_missing_is_a_dash(project: Path) -> None:
    plans, store = make_grid(project, flops={})
    (row, *_) = collect_grid(plans, store).rows
    assert row.train_flops is None and row.teacher_flops is None
    assert "FLOPs" not in _printed(grid_tables(collect_grid(plans, store)))
    cells = {n: r for n, r in collect_grid(plans, store).cells.items() if "recipe=kd,train.lr=0.001" not in n}
    missing = {n: "gone" for n in plans.cells if n not in cells}
    found = GridResults(plans, cells, missing, find_baseline(plans, ""))
    assert {c.finding for c in found.comparisons.values()} == {"-; no seed has both"}
    assert any("has no result; choose another with --baseline" in note for note in found.notes)
    assert ">-</td>" in grid_page(found).text and "no seed has both" in _printed(grid_tables(found)) and as_latex(found)


def test_notes_of_cells_that_differ_in_a_percentage_are_one() -> None:
    notes = [
        "9.5% are right",
        "10.1% are right",
        "the same",
        "9.9% are right",
        "the same",
        "5% of 7%",
        "5% of 8%",
        "{}",
    ]
    assert ranges(notes) == ["9.5% to 10.1% are right", "the same", "5% of 7%", "5% of 8%", "{}"]
    assert ranges(["9.5% are right", "9.5% are right"]) == ["9.5% are right"] and ranges([]) == []


def test_one_row_has_nothing_to_be_compared_with(project: Path) -> None:
    plans, store = make_grid(
        project, "extends: tiny.yaml\nstudent: {epochs: 3}\ngrid: {seeds: 2, axes: {recipe: [kd], train.lr: [1e-3]}}\n"
    )
    found = collect_grid(plans, store)
    assert found.comparisons == {} and found.comparison_notes == ()
    assert "Comparison" not in grid_page(found).text and "difference" not in as_latex(found) + _printed(
        grid_tables(found)
    )


def test_a_baseline_is_one_row_or_labels_of_some_axes(made: tuple[Plans, Store]) -> None:
    plans, _ = made
    for text, labels in [
        ("", {"recipe": "kd", "train.lr": "0.001"}),
        ("recipe=staged", {"recipe": "staged", "train.lr": "0.01"}),  # the only one
        ("recipe=ce, train.lr=1e-2", {"recipe": "ce", "train.lr": "0.01"}),
        ("train.lr=0.001,recipe=ce", {"recipe": "ce", "train.lr": "0.001"}),
        ("recipe=kd", {"recipe": "kd"}),
        ("train.lr=1e-2", {"train.lr": "0.01"}),
    ]:
        assert find_baseline(plans, text) == labels
    for text, words, hint in [
        ("recipe=staged,train.lr=1e-3", "picks no row", "recipe=ce,train.lr=0.01"),
        ("recipe=kdd", "axis 'recipe' has no 'kdd'", "did you mean 'kd'?"),
        ("recipe", "not of the form axis=label", "recipe, train.lr"),
        ("seed=3", "the rows have no axis 'seed'", "recipe, train.lr"),
        ("recipe=kd,recipe=ce", "two labels are of axis 'recipe'", "one label of each axis"),
    ]:
        with pytest.raises(UsageError, match=words) as caught:
            find_baseline(plans, text)
        assert hint in caught.value.hint


def test_the_command_prints_the_comparison(made: tuple[Plans, Store], stagedkd: Command) -> None:
    folder = made[1].root.parent
    spec = str(folder / "specs" / "grid.yaml")
    found = stagedkd("report", spec, "--baseline", "recipe=staged")
    assert found.returncode == 0, found.stderr
    assert "students minus those of recipe=staged,train.lr=0.01" in found.stdout and "the baseline" in found.stdout
    assert "note: 7 seeds cannot reach p < 0.05" in found.stdout and "report: " in found.stdout
    values = json.loads((folder / "results" / "grid" / "metrics.json").read_text("utf-8"))
    assert values["baseline"] == {"recipe": "staged", "train.lr": "0.01"}
    wrong = stagedkd("report", spec, "--baseline", "recipe=staged,train.lr=1e-3")
    assert wrong.returncode == 2 and "picks no row" in wrong.stderr and "recipe=kd,train.lr=0.01" in wrong.stderr
    single = stagedkd("report", spec, "--cell", "recipe=staged,seed=0", "--baseline", "recipe=staged")
    assert single.returncode == 2 and "--baseline is for grids" in single.stderr


# One experiment


def test_correlations_are_shown_by_hop_where_they_were_measured(made: tuple[Plans, Store]) -> None:
    plans, store = made
    plan = plans.cells["recipe=staged,train.lr=0.01,seed=0"]
    found = collect(plan, store)
    shown = found.correlations["student"]
    assert list(found.correlations) == ["student"]  # the assistant's artifact has no such file
    assert shown.student == ("stem+layer1", "layer2") and shown.after[1] == (0.41, 0.42, 0.93) and shown.clips == 256
    html = page(found)
    assert (
        "Correlation of the substages" in html and "<h3>student</h3>" in html and "pooled features, 256 clips." in html
    )
    assert "Correlation" not in page(replace(found, correlations={}))
    assert "3.00 TFLOPs over all hops" in html and "without the teacher's 5.00 PFLOPs" in html
    values = results_json(found)
    assert values["train_flops"] == {"hops": 3 * 10**12, "teacher": 5 * 10**15}
    assert values["student"]["train_flops"] == FLOPS["distill"] and "1.50 TFLOPs" in _printed(results_tables(found))


def test_the_heat_maps_show_every_value() -> None:
    student, teacher = MATRIX["student"], MATRIX["teacher"]
    for plot in correlation_maps("student", Correlation(student, teacher, MATRIX["before"], MATRIX["after"], 256)):
        svg = plot.svg
        assert svg.startswith("<svg") and svg == svg.strip() + "\n"
        told = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
        for value in itertools.chain.from_iterable(MATRIX[plot.name.rpartition("-")[2]]):
            assert f"{value:.2f}" in told
        assert {"stem+layer1", "layer2", "substages of the teacher", "of the student", "0.0", "1.0"} <= set(told)


REFINED = {
    "round": 1,
    "outcome": "accepted",
    "accuracy_before": 0.612,
    "accuracy_after": 0.701,
    "coverage": 0.25,
    "precision": None,
    "ece": 0.0412,
    "nll": None,
    "wrong_to_right": 120,
    "right_to_wrong": 31,
    "recall": {"a": 0.9, "b": 0.4},
    "train_flops": 5,
}


def test_rounds_of_refinement_are_shown_where_there_are_any(made: tuple[Plans, Store]) -> None:
    stages = (
        Stage("labels", WeakenWork(labels=Labels(), clip=None), role="labels"),
        Stage("refine-1", RefineWork.model_construct(), role="refine"),
    )
    artifacts = {s.name: SimpleNamespace(manifest=SimpleNamespace(metrics=REFINED)) for s in stages}
    rounds = read_refinements(Graph("g", Lock(), stages, Clip(), 1), artifacts)  # type: ignore[arg-type]
    (first,) = rounds
    assert (first.name, first.before, first.after, first.wrong_to_right, first.worst) == (
        "refine-1",
        0.612,
        0.701,
        120,
        "b",
    )
    plans, store = made
    without = collect(next(iter(plans.cells.values())), store)
    assert without.refinements == () and "refinement" not in page(without) + _printed(results_tables(without))
    found = replace(without, refinements=rounds)
    text, html = _printed(results_tables(found)), page(found)
    assert re.search(r"1 +accepted +61\.2% +70\.1% +25\.0% +- +0\.041 +- +120 +31 +b 40\.0%", text), text
    assert found.train_flops is None or found.train_flops == (without.train_flops or 0) + 5
    assert "<h2>Label refinement</h2>" in html and "<td>61.2%</td><td>70.1%</td><td>25.0%</td><td>-</td>" in html
    assert "<th>b</th><td>40.0%</td>" in html and results_json(found)["refinement"][0]["outcome"] == "accepted"
    assert Refinement("refine-2", 2, "skipped", None, None, 0.0, None, None, None, 0, 0, {}, 0).worst == ""


def test_small_p_values_are_not_written_as_zero() -> None:
    assert [p_text(p) for p in (None, 0.00004, 0.0625, 0.049_6, 1.0)] == ["-", "<0.001", "0.0625", "0.0496", "1"]
