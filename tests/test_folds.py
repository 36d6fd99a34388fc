"""Folds as repeats: `grid.folds`, groups that are always validation, and the group as the unit of intervals."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stagedkd.data.index import Entry, split_entries
from stagedkd.errors import DataError, SpecError
from stagedkd.experiment.run import compiled
from stagedkd.plan.runtime import load_runtime
from stagedkd.report.comparison import power_notes
from stagedkd.report.units import Score, Scores, paired_units, summarize
from stagedkd.spec.declared import KEYS as COMPARE_KEYS
from stagedkd.spec.jsonschema import json_schema
from stagedkd.spec.load import load_experiment, load_spec
from stagedkd.spec.read_grid import KEYS as GRID_KEYS
from stagedkd.spec.schema import Csv
from stagedkd.spec.tune import KEYS as TUNE_KEYS
from stagedkd.spec.tuning import load_tuning
from stagedkd.stages.context import Silent
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Store
from tests.conftest import Command
from tests.pages import compare_with
from tests.videos import write_video

SPEC = """\
data: {kind: csv, path: clips.csv, folds: 3, test_folds: 1}
clip: {frames: 4, size: 16}
train: {batch: 4, warmup_epochs: 0}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1], epochs: 1}
evaluate: {split: test}
recipe: kd
"""
GRID = "grid: {folds: 3, seeds: 2, axes: {$method: {kd: {recipe: kd}, ce: {recipe: ce}}}}\n"
TUNE = "tune: {values: {student.train.lr: [1e-3, 1e-2]}, seeds: [100, 101, 102]}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project as working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAGEDKD_DATA", raising=False)
    return tmp_path


def load(text: str, spec: str = SPEC):
    Path("x.yaml").write_text(spec + text, "utf-8")
    return load_experiment("x.yaml")


def refused(text: str, spec: str = SPEC) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        load(text, spec)
    return caught.value.problems[0].message, caught.value.problems[0].hint


# ---------------------------------------------------------------- the language


def test_a_fold_is_a_repeat_as_a_seed_is(here: Path) -> None:
    found = load(GRID)
    assert [cell.name for cell in found.cells][:3] == [
        f"method=kd,fold={f},seed={s}" for f, s in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(found.cells) == 12
    assert [cell.spec.data.fold for cell in found.cells][:6] == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    listed = load("grid: {folds: [2, 0], axes: {train.lr: [1e-3]}, include: [{train.lr: 1e-2}]}\n")
    assert [cell.name for cell in listed.cells] == [
        f"train.lr={lr},fold={f}" for lr in ("0.001", "0.01") for f in (2, 0)
    ]


@pytest.mark.parametrize(
    ("grid", "message", "hint"),
    [
        (
            "folds: none",
            "'grid.folds' must be a number of folds from 1 to 10,000, or a list of folds",
            "for example folds: 3",
        ),
        (
            "folds: 0",
            "'grid.folds' must be a number of folds from 1 to 10,000, or a list of folds",
            "for example folds: 3",
        ),
        ("folds: 3, axes: {data.fold: [1, 2]}", "'folds' and an axis both set 'data.fold'", "remove one of them"),
        (
            "axes: {$fold: {a: {train: {lr: 1e-3}}}}",
            "an axis cannot be called '$fold'",
            "rename it: reports aggregate over the axis fold",
        ),
        ("folds: [1, 1]", "duplicate label '1' on axis 'fold'", "remove one of them"),
        ("folds: 4", "'data': fold 3 does not exist: with 3 folds, it is 0 to 2", ""),
    ],
)
def test_wrong_folds_are_refused(here: Path, grid: str, message: str, hint: str) -> None:
    assert refused(f"grid: {{{grid}}}\n") == (message, hint)


def test_editors_know_every_key_of_the_sections_of_a_file() -> None:
    known = json_schema()["properties"]
    for name, keys in (("grid", GRID_KEYS), ("tune", TUNE_KEYS), ("compare", COMPARE_KEYS)):
        assert set(known[name]["properties"]) == set(keys), name


def test_simulated_clips_have_no_folds(here: Path) -> None:
    simulated = SPEC.replace(
        "{kind: csv, path: clips.csv, folds: 3, test_folds: 1}", "{kind: shapes, train: 8, val: 8, test: 8}"
    )
    assert "data.fold" in refused("grid: {folds: 2}\n", simulated)[0]


LEAK = "tuning chooses on clips that are tested here: its validation split is not that of the results"
VARY = "grid: {seeds: 2, vary: [data, student]}\n"
APART = SPEC.replace("folds: 3,", "folds: 3, val_groups: [anna],")
DATA = "kind: csv, path: clips.csv, folds: 3, test_folds: 1"
CHOICES = """\
form: 1
spec: x.yaml
made_from: %s
rule: worst_seed
seeds: [100, 101, 102]
settings: {all: {choice: {student.train.lr: 0.01}, tried: []}}
"""


@pytest.mark.parametrize("grid", [GRID, VARY], ids=["folds", "data drawn again"])
def test_tune_does_not_choose_on_clips_that_the_results_test(here: Path, grid: str) -> None:
    load(grid + TUNE)  # as it is, nothing is chosen yet
    with pytest.raises(SpecError) as caught:
        load_tuning(here / "x.yaml")
    problem = caught.value.problems[0]
    assert (problem.message, problem.hint) == (LEAK, "name groups that always validate: data.val_groups (kind: csv)")
    assert str(problem.place).endswith("x.yaml:9:1")


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        (APART, GRID),
        (APART, VARY),
        (SPEC.replace("folds: 3,", "folds: 3, val: val.csv,"), GRID),
        (SPEC.replace("split: test", "split: val"), GRID),
        (SPEC.replace("kind: csv, path: clips.csv,", "kind: folder, folders: splits,"), GRID),
        (SPEC.replace(DATA, "kind: csv, path: clips.csv, test: test.csv, folds: 3"), GRID),
        (SPEC.replace(DATA, "kind: csv, path: clips.csv, test: test.csv, test_folds: 0, folds: 3"), GRID),
        (SPEC.replace(DATA, "kind: ucf101, folds: 3"), GRID),
        (SPEC.replace(DATA, "kind: shapes, classes: 4"), VARY),
        (SPEC, "grid: {axes: {data.fold: [0, 1, 2]}}\n"),  # each fold chooses for itself
    ],
)
def test_tune_may_choose_where_nothing_that_validates_is_tested(here: Path, spec: str, grid: str) -> None:
    load(grid + TUNE, spec)
    assert load_tuning(here / "x.yaml").settings


@pytest.mark.parametrize(
    ("child", "leaks"),
    [
        ("", False),
        ("data: {fold: 1}\n", True),
        ("data: {seed: 7}\n", True),
        ("data: {path: others.csv, fold: 1}\n", False),
        ("data: {fold: 1, val_groups: [anna]}\n", True),  # tuning had other groups for validation
        ("data: {fold: 1}\nevaluate: {split: val}\n", False),
        ("data: {classes: [a, b]}\n", True),  # parts are alike in their classes, so others are dealt
    ],
)
def test_a_choice_is_not_taken_where_it_was_made_on_test_clips(here: Path, child: str, leaks: bool) -> None:
    load(TUNE)
    Path("x.tuned.yaml").write_text(CHOICES % load_tuning(here / "x.yaml").made_from, "utf-8")
    Path("child.yaml").write_text(f"extends: x.yaml\ntuned: x.tuned.yaml\n{child}", "utf-8")
    if not leaks:
        experiment = load_experiment("child.yaml")
        assert experiment.cells[0].spec.student.train.lr == 0.01
        told = [note.message for note in experiment.notes if "were chosen on validation clips" in note.message]
        assert len(told) == ("others.csv" in child)  # of two tables nobody knows whether they share videos
        return
    with pytest.raises(SpecError) as caught:
        load_experiment("child.yaml")
    assert [problem.message for problem in caught.value.problems] == [LEAK]


def test_another_official_split_is_tested_on_clips_of_the_first_ones_training_list(here: Path) -> None:
    official = SPEC.replace(DATA, "kind: ucf101, folds: 3")
    load(TUNE, official)
    Path("x.tuned.yaml").write_text(CHOICES % load_tuning(here / "x.yaml").made_from, "utf-8")
    Path("x.yaml").write_text(official + TUNE + "tuned: x.tuned.yaml\n", "utf-8")
    assert load_experiment("x.yaml").cells[0].spec.student.train.lr == 0.01
    with pytest.raises(SpecError) as caught:
        load_experiment("x.yaml", ["data.split=2"])
    problem = caught.value.problems[0]
    assert (problem.message, problem.hint) == (LEAK, "tune on data.split 2, or evaluate on val")
    load("grid: {axes: {data.split: [1, 2]}}\n" + TUNE.replace("102]", "102], at: 1"), official)
    with pytest.raises(SpecError, match="tuning chooses on clips that are tested here"):
        load_tuning(here / "x.yaml")


def test_no_override_leads_around_it(here: Path) -> None:
    load(TUNE)
    Path("x.tuned.yaml").write_text(CHOICES % load_tuning(here / "x.yaml").made_from, "utf-8")
    Path("x.yaml").write_text(SPEC + TUNE + "tuned: x.tuned.yaml\n", "utf-8")
    assert load_experiment("x.yaml").cells[0].spec.student.train.lr == 0.01
    with pytest.raises(SpecError, match="tuning chooses on clips that are tested here"):
        load_experiment("x.yaml", ["data.fold=2"])


def test_val_and_val_groups_exclude_each_other(here: Path) -> None:
    both = SPEC.replace("folds: 3,", "folds: 3, val: val.csv, val_groups: [anna],")
    assert "val and val_groups both name the validation split" in refused("", both)[0]
    two = SPEC.replace("folds: 3,", "folds: 2, val_groups: [anna],")
    assert len(load("grid: {folds: 2}\n", two).cells) == 2  # all parts but the tested one are left for training


# ---------------------------------------------------------------- the split


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 2**31 - 1))
def test_every_other_group_is_tested_in_exactly_one_fold(folds: int, apart: int, seed: int) -> None:
    dice = random.Random(seed)
    names = [f"g{i}" for i in range(folds + apart + 1)]
    entries = [Entry(f"{name}/{i}", f"c{i % 2}", name) for name in names for i in range(dice.randint(2, 5))]
    kept = tuple(names[:apart]) or None
    tested: dict[str, int] = defaultdict(int)
    for fold in range(folds):
        data = Csv(kind="csv", path="x.csv", folds=folds + (apart == 0), fold=fold, seed=seed, val_groups=kept)
        placed = split_entries(entries, data)
        splits = {split: {e.group for e in placed if e.split == split} for split in ("train", "val", "test")}
        assert not splits["val"] & splits["test"] and not splits["train"] & (splits["val"] | splits["test"])
        if kept:
            assert splits["val"] == set(kept)
        for group in splits["test"]:
            tested[group] += 1
    assert set(tested.values()) <= {1}
    if kept:
        assert set(tested) == set(names) - set(kept)


def test_a_group_without_a_clip_is_named() -> None:
    entries = [Entry(f"{name}/{i}", f"c{i}", name) for name in ("anna", "bob", "carl") for i in range(2)]
    with pytest.raises(DataError, match=r"data\.val_groups names ana, of which there is no clip") as caught:
        split_entries(entries, Csv(kind="csv", path="x.csv", folds=2, val_groups=("ana",)))
    assert caught.value.hint == "the groups are anna, bob, carl"


# ---------------------------------------------------------------- the statistics


def scores_of(name: str, values: np.ndarray, *, shared: bool = False) -> Scores:
    """Scores of made-up networks (group x seed); `shared` networks are one for all seeds."""
    return {
        f"g{g}": {
            (f"{s}", f"{g}"): Score(f"{name} {g} {0 if shared else s}", float(row[0 if shared else s]), 10)
            for s in range(len(row))
        }
        for g, row in enumerate(values)
    }


def test_the_unit_is_the_group_and_seeds_are_averaged_in_it() -> None:
    dice = np.random.default_rng(0)
    groups = dice.normal(0, 0.2, (9, 1))
    base, more = (np.clip(0.5 + groups + shift + dice.normal(0, 0.05, (9, 4)), 0, 1) for shift in (0, 0.1))
    found = summarize(scores_of("b", base), {})
    assert found is not None and found.n == 9
    half = stats.t.ppf(0.975, 8) * stats.sem(base.mean(1))
    assert found.interval == pytest.approx((base.mean() - half, base.mean() + half)) and found.top1 == pytest.approx(
        base.mean()
    )
    comparison = compare_with({"b": scores_of("b", base), "m": scores_of("m", more)}, "b", "m", unit="group")["m"]
    difference = more.mean(1) - base.mean(1)
    signs = np.array([[1 if code >> i & 1 else -1 for i in range(9)] for code in range(2**9)])
    p = np.mean(np.abs((signs * difference).mean(1)) >= abs(difference.mean()) - 1e-12)
    assert comparison.paired is not None and comparison.paired.n == 9
    assert comparison.paired.mean == pytest.approx(difference.mean()) and comparison.p_holm == pytest.approx(p)


def test_a_network_that_seeds_share_counts_once_and_groups_of_a_fold_count_each() -> None:
    values = np.array([[0.2, 0.9], [0.4, 0.9], [0.9, 0.9]])
    shared = summarize(scores_of("t", values, shared=True), {})
    assert shared is not None and (shared.n, shared.top1) == (3, pytest.approx(0.5)) and shared.failed == 0
    one_fold = {f"g{g}": {("0", "0"): Score(f"net g{g}", top1, 5)} for g, top1 in enumerate((0.2, 0.6))}
    both = summarize(one_fold, {})
    assert both is not None and both.n == 2  # one network, two groups


def test_pairs_are_of_the_repeats_that_both_have() -> None:
    """A lost cell takes its fold and seed from the other setting too, so that no seed is compared with another."""
    base, more = scores_of("b", np.array([[0.1, 0.9], [0.5, 0.5]])), scores_of("m", np.array([[0.3, 0.0], [0.6, 0.8]]))
    lost = {unit: {at: s for at, s in repeats.items() if at != ("1", "0")} for unit, repeats in more.items()}
    assert list(paired_units(lost, base)) == [(0.3, 0.1, False), (pytest.approx(0.7), 0.5, False)]
    assert list(paired_units({"g9": more["g0"]}, base)) == []
    found = compare_with({"b": base, "m": {"g9": more["g0"]}}, "b", unit="group")["m"]
    assert found.remark == "no group has both"
    few = compare_with({"b": base, "m": more}, "b", "m", unit="group")
    assert list(power_notes(few, "group")) == ["2 groups cannot show the primary comparison: the smallest p is 0.5"]


# ---------------------------------------------------------------- real command lines


@pytest.mark.slow
def test_people_are_left_out_in_turn(project: Path, stagedkd: Command) -> None:
    """Four people, one of them always validation: each other one is tested once, and is a unit of the interval."""
    rows = ["path,label,group"]
    for person in ("anna", "bob", "carl", "dora"):
        for label in ("still", "noise"):
            for take in range(2):
                path = f"clips/{person}_{label}_{take}.avi"
                write_video(project / path, 8, noisy=label == "noise")
                rows.append(f"{path},{label},{person}")
    (project / "clips.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (project / "params.yaml").write_text("runtime: {device: cpu, data_dir: .}\n", "utf-8")
    spec = SPEC.replace("folds: 3,", "folds: 3, val_groups: [anna],") + GRID
    (project / "specs" / "people.yaml").write_text(spec + "compare: {baseline: ce, primary: kd}\n" + TUNE, "utf-8")
    tuned = stagedkd("tune", "specs/people.yaml", "--dry-run")
    assert tuned.returncode == 0 and "12 cells" in tuned.stdout, tuned.stdout  # 2 methods, 2 rates, 3 seeds; one fold
    ran = stagedkd("run", "specs/people.yaml", "--threads", "1")
    assert ran.returncode == 0, ran.stderr
    assert "paired over groups" in ran.stdout and "3 groups cannot show the primary comparison" in ran.stdout
    metrics: dict[str, Any] = json.loads((project / "results/people/metrics.json").read_text("utf-8"))
    by_hand = _by_hand(project)
    assert set(by_hand["kd"]) == {"bob", "carl", "dora"}
    for row in metrics["rows"]:
        groups = by_hand[row["method"]]
        assert row["by_group"] == pytest.approx(groups) and row["student"]["groups"] == 3
        assert row["student"]["top1"] == pytest.approx(np.mean(list(groups.values())))
    assert (
        metrics["intervals"]
        == "Student's over groups of clips, each the mean of its seeds, given one draw of labels and teacher"
    )
    page = (project / "results/people/report.html").read_text("utf-8")
    assert 'id="groups"' in page and "paired over the groups that both have" in page


def _by_hand(project: Path) -> dict[str, dict[str, float]]:
    """The students' accuracy by method and person, from the answers in the store."""
    plans = compiled(load_experiment(project / "specs" / "people.yaml"), load_runtime(project), Silent())
    store, found = Store(project / "store"), defaultdict[str, dict[str, list[bool]]](lambda: defaultdict(list))
    for name, plan in plans.cells.items():
        groups = read_table(store.artifact(plan.stage("data")).read("clips.parquet"))["group"]
        rows = read_table(store.artifact(plan.stage("evaluate-student")).read("predictions.parquet"))
        for clip, label, predicted in zip(rows["clip"], rows["label"], rows["predicted"], strict=True):
            found[plans.labels[name]["method"]][groups[clip]].append(label == predicted)
    return {method: {g: float(np.mean(right)) for g, right in people.items()} for method, people in found.items()}


def test_val_groups_change_no_key_of_specs_without_them(here: Path) -> None:
    Path("x.yaml").write_text(SPEC, "utf-8")
    assert "val_groups" not in load_spec("x.yaml").data.model_dump(exclude_none=True)
