"""Grids: cells, names, sharing, picking, running, reporting."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from stagedkd import load_spec
from stagedkd.errors import SpecError, UsageError
from stagedkd.plan.compile import compile_experiment
from stagedkd.spec.load import load_experiment
from tests.conftest import OWN_NET, TINY, Command

GRID = """\
extends: tiny.yaml
recipe: kd
student: {epochs: 3}
grid:
  seeds: 2
  axes:
    recipe: [kd, ce]
    student: {w4: {}, w8: {width: 8}}
  exclude: [{recipe: ce, student: w8}]
  include: [{recipe: hint, student: w4, seed: 5}]
"""

TORN = """

class Torn(nn.Module):
    def forward(self, x):
        return x * float("nan")
"""


@pytest.fixture
def grid(project: Path) -> str:
    text = TINY.replace("epochs: 3}", "epochs: 1}").replace("train: 48", "train: 32")
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    (project / "specs" / "grid.yaml").write_text(GRID, "utf-8")
    return "specs/grid.yaml"


def test_cells_are_the_product_less_exclude_plus_include_under_stable_names(grid: str) -> None:
    found = load_experiment(grid)
    assert [cell.name for cell in found.cells] == [
        "recipe=kd,student=w4,seed=0",
        "recipe=kd,student=w4,seed=1",
        "recipe=kd,student=w8,seed=0",
        "recipe=kd,student=w8,seed=1",
        "recipe=ce,student=w4,seed=0",
        "recipe=ce,student=w4,seed=1",
        "recipe=hint,student=w4,seed=5",
    ]
    assert found.name == "grid" and found.axes == {
        "recipe": ("kd", "ce", "hint"),
        "student": ("w4", "w8"),
        "seed": ("0", "1", "5"),
    }
    last = found.cells[-1]
    assert (
        last.spec.seed == 5
        and list(last.spec.distill.phases) == ["hint", "train"]
        and last.spec.name == "grid+recipe=hint,student=w4,seed=5"
    )
    assert found.cells[2].spec.student.model_dump()["width"] == 8 and found.cells[2].labels == {
        "recipe": "kd",
        "student": "w8",
        "seed": "0",
    }


def test_cells_share_stages_by_key_and_not_by_name(grid: str, project: Path) -> None:
    plans = compile_experiment(load_experiment(grid))
    assert len({plan.stage("teacher").key for plan in plans.cells.values()}) == 1
    assert len({plan.stage("student").key for plan in plans.cells.values()}) == 7 and plans.twins == ()
    assert len(plans.unique) == 1 + 1 + 2 + 2 * 7 + 2 * 4 + 0 * 2 + 2 * 0 + _controls(plans) - 8
    renamed = (
        GRID.replace("w4:", "small:")
        .replace("w4", "small")
        .replace("[kd, ce]", "{a: kd, b: ce}")
        .replace("recipe: ce", "recipe: b")
    )
    (project / "specs" / "renamed.yaml").write_text(
        renamed.replace("recipe: hint", "recipe: a").replace("seed: 5", "seed: 9"), "utf-8"
    )
    others = compile_experiment(load_experiment("specs/renamed.yaml"))
    first, same = plans.cells["recipe=kd,student=w4,seed=0"], others.cells["recipe=a,student=small,seed=0"]
    assert [s.key for s in first.stages] == [s.key for s in same.stages]
    alone = load_spec("specs/tiny.yaml", ["recipe=kd", "student.epochs=3"])
    assert first.spec == alone.model_copy(update={"name": first.spec.name})


def _controls(plans: object) -> int:
    stages = {s.identity for plan in plans.cells.values() for s in plan.stages if "control" in s.name}  # type: ignore[attr-defined]
    return len(stages)


def test_cells_that_are_one_experiment_are_said(project: Path) -> None:
    text = "extends: tiny.yaml\ngrid: {axes: {labels.seed: {a: 0, b: 0, c: 1}}}\n"
    (project / "specs" / "twins.yaml").write_text(text, "utf-8")
    plans = compile_experiment(load_experiment("specs/twins.yaml"))
    assert plans.twins == (("labels.seed=a", "labels.seed=b"),)


def test_axes_labels_and_picking(project: Path) -> None:
    text = """\
extends: tiny.yaml
grid:
  axes:
    train.lr: [1e-3, 3e-2]
    cascade: {none: [], auto: auto}
    $size: {small: {clip: {size: 12}, train: {batch: 8}}, same: {}}
    control: [ce, null]
    labels: {all: {$replace: {clean: 1.0}}, some: {}}
"""
    (project / "specs" / "axes.yaml").write_text(text, "utf-8")
    found = load_experiment("specs/axes.yaml")
    assert (
        len(found.cells) == 32
        and found.axes["train.lr"] == ("0.001", "0.03")
        and found.axes["control"] == ("ce", "null")
    )
    cell = found.cells[0]
    assert cell.name == "train.lr=0.001,cascade=none,size=small,control=ce,labels=all"
    assert (cell.spec.clip.size, cell.spec.train.batch, cell.spec.train.lr, cell.spec.labels.noise) == (
        12,
        8,
        1e-3,
        None,
    )
    picked = load_experiment(
        "specs/axes.yaml",
        (),
        ("train.lr=1e-3,size=small,control=null,labels=some", "train.lr=0.03, cascade=auto,size=same,labels=all"),
    )
    assert [c.name for c in picked.cells] == [c.name for c in found.cells if c in picked.cells] and len(
        picked.cells
    ) == 4
    assert (
        picked.axes["size"] == ("small", "same")
        and load_spec("specs/axes.yaml", cell=cell.name).name == f"axes+{cell.name}"
    )
    for text, words in [
        ("lr=1", "there is no axis 'lr'"),
        ("size=smal", "axis 'size' has no label 'smal'"),
        ("size", "not of the form axis=label"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_experiment("specs/axes.yaml", (), (text,))
    with pytest.raises(UsageError, match="has 32 cells") as caught:
        load_spec("specs/axes.yaml")
    assert caught.value.hint == "pick one with --cell"
    with pytest.raises(UsageError, match="--cell needs a spec with a grid"):
        load_experiment("specs/tiny.yaml", (), ("seed=1",))
    (project / "specs" / "few.yaml").write_text(
        "extends: tiny.yaml\ngrid: {seeds: 2, axes: {labels.seed: [1, 2]}, exclude: [{labels.seed: 1, seed: 1}]}\n"
    )
    with pytest.raises(UsageError, match=r"no cell matches labels\.seed=1,seed=1"):
        load_experiment("specs/few.yaml", (), ("labels.seed=1,seed=1",))


def test_included_cells_run_over_all_seeds_unless_they_name_one(project: Path) -> None:
    text = "extends: tiny.yaml\ngrid: {seeds: [3, 4], axes: {labels.clean: [0.5]}, include: [{labels.clean: 0.25}]}\n"
    (project / "specs" / "more.yaml").write_text(text, "utf-8")
    assert [c.name for c in load_experiment("specs/more.yaml").cells] == [
        "labels.clean=0.5,seed=3",
        "labels.clean=0.5,seed=4",
        "labels.clean=0.25,seed=3",
        "labels.clean=0.25,seed=4",
    ]


def test_set_may_not_touch_what_an_axis_sets(grid: str) -> None:
    assert {c.spec.train.lr for c in load_experiment(grid, ["train.lr=2e-3", "student.train.lr=1e-3"]).cells} == {2e-3}
    assert load_experiment(grid, ["train.lr=2e-3"]).name == "grid+train.lr=2e-3"
    for text in ("student.width=4", "student={width: 4}", "seed=3", "recipe=kd"):
        with pytest.raises(UsageError, match="the grid's axis") as caught:
            load_experiment(grid, [text])
        assert caught.value.hint.startswith("pick cells with --cell")


def test_a_grid_has_a_limit(project: Path) -> None:
    (project / "specs" / "huge.yaml").write_text(
        "extends: tiny.yaml\ngrid: {seeds: 6000, axes: {labels.seed: [1, 2]}}\n", "utf-8"
    )
    with pytest.raises(SpecError, match="the grid has 12,000 cells; at most 10,000"):
        load_experiment("specs/huge.yaml")


def test_a_faulty_grid_does_not_hide_other_faults_nor_invent_them(project: Path) -> None:
    text = TINY.replace("student:", "stud:").replace("lr: 1e-2", "lr: no")
    grid = "grid: {axes: {student: {a: {arch: resnet3d}}, train.lrr: [1]}}\n"
    (project / "specs" / "both.yaml").write_text(text.replace("stud: {arch", "x: {arch") + grid, "utf-8")
    with pytest.raises(SpecError) as caught:
        load_experiment("specs/both.yaml")
    assert [p.message for p in caught.value.problems] == [
        "'train.lr' must be a number, not 'no'",
        "unknown key 'x'",
        "axis 'train.lrr' is not a path of the spec",
    ]


def test_grid_and_name_are_not_inherited(grid: str, project: Path) -> None:
    (project / "specs" / "child.yaml").write_text("extends: grid.yaml\n", "utf-8")
    found = load_experiment("specs/child.yaml")
    assert not found.is_grid and found.name == "child" and len(found.cells) == 1


def test_plan_prints_cells_unique_stages_and_what_sharing_saves(grid: str, stagedkd: Command) -> None:
    found = stagedkd("plan", grid)
    assert found.returncode == 0, found.stderr
    assert "recipe=kd,student=w4,seed=0    8 miss" in found.stdout
    assert (
        "7 cells, 56 stages, " in found.stdout
        and "sharing saves" in found.stdout
        and "of the unique stages: " in found.stdout
    )
    values = json.loads(stagedkd("plan", grid, "--json").stdout)
    keys = {s["key"] for cell in values["cells"] for s in cell["stages"]}
    assert values["unique"] == len(keys) and f" {len(keys)} of them unique" in found.stdout
    picked = stagedkd("plan", grid, "--cell", "recipe=hint")
    assert "student" in picked.stdout and "distill" in picked.stdout and "miss" in picked.stdout


@pytest.mark.slow
def test_a_grid_runs_each_unique_stage_once_and_reports(grid: str, stagedkd: Command, project: Path) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "torn.py").write_text(OWN_NET.replace("nn.Dropout(0.3)", "Torn()") + TORN, "utf-8")
    cut = "blocks: {$delete: true}, substages: [[stem], [mid]]"
    broken = GRID.replace("exclude:", "exclude: [{recipe: ce}]\n  #").replace(
        "w8: {width: 8}", f"big: {{arch: file, path: nets/torn.py, {cut}}}"
    )
    broken = broken.replace("blocks: {$delete: true}, ", "")
    (project / "specs" / "grid.yaml").write_text(broken, "utf-8")
    found = stagedkd("run", grid)
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr
    assert "2 of 5 cells failed:" in found.stderr and "  recipe=kd,student=big,seed=0: stage" in found.stderr
    assert "help: fix them, then run the same command again: it runs what is missing" in found.stderr
    ran = [re.split(r"[()]", line)[1] for line in found.stderr.splitlines() if "running (" in line]
    assert len(ran) == len(set(ran))
    made = {p.name for p in (project / "store").iterdir() if p.name[0] != "."}
    assert {r.rstrip(")") for r in ran} - made == {
        r.rstrip(")") for r in ran if r.startswith("distill")
    } - made and len(made) == len(ran) - 2
    results = project / "results" / "grid"
    assert {p.name for p in results.iterdir()} == {
        "report.html",
        "metrics.json",
        "cells.csv",
        "table.tex",
        "summary.json",
        "networks.json",
        "plots",
    }
    metrics = json.loads((results / "metrics.json").read_text("utf-8"))
    kd, big, hint = metrics["rows"]
    assert (kd["recipe"], kd["student"]["seeds"], kd["missing"], kd["teacher"]["seeds"]) == ("kd", 2, 0, 1)
    assert (big["student"], big["missing"], hint["student"]["seeds"]) == (None, 2, 1)
    tops = [metrics["cells"][f"recipe=kd,student=w4,seed={s}"]["student"] for s in (0, 1)]
    assert kd["student"]["top1"] == pytest.approx(sum(tops) / 2)
    rows = list(csv.DictReader(io.StringIO(stagedkd("report", grid, "--format", "csv").stdout)))
    assert len(rows) == 3 * 3 and {row["network"] for row in rows} == {"teacher", "student", "control-ce"}
    assert [row["seed"] for row in rows if row["network"] == "student"] == ["0", "1", "5"]
    latex = stagedkd("report", grid, "--format", "latex").stdout
    assert latex == (results / "table.tex").read_text("utf-8") and r"\toprule" in latex and "kd & w4 & 2 & " in latex
    page = (results / "report.html").read_text("utf-8")
    assert "<svg" in page and "no result for recipe=kd,student=big,seed=0" in page and "2 missing" in page
    again = stagedkd("run", grid, "--cell", "student=w4")
    assert again.returncode == 0 and "nothing to do" in again.stderr and "seeds" in again.stdout
    single = stagedkd("run", grid, "--cell", "recipe=hint")
    assert (
        single.returncode == 0 and (project / "results" / "grid+recipe=hint,student=w4,seed=5" / "report.html").exists()
    )
    assert (
        json.loads(stagedkd("show", grid, "--json").stdout)["rows"][0]["recipe"] == "kd"
        and "2 missing" in stagedkd("show", grid).stdout
    )
    assert stagedkd("report", grid).returncode == 0 and stagedkd("lock", grid).stdout == "stagedkd.lock is up to date\n"


def test_the_interval_over_seeds_is_students(monkeypatch: pytest.MonkeyPatch) -> None:
    from stagedkd.report.statistics import mean_interval

    low, high = mean_interval([0.5, 0.6, 0.7])  # mean 0.6, sd 0.1, t(0.975, 2) = 4.302653
    assert (low, high) == (
        pytest.approx(0.6 - 4.302653 * 0.1 / 3**0.5, abs=1e-6),
        pytest.approx(0.6 + 4.302653 * 0.1 / 3**0.5, abs=1e-6),
    )
    assert mean_interval([0.99, 1.0]) == (pytest.approx(0.931469, abs=1e-5), 1.0)


def test_a_labelled_map_of_sections_may_choose_a_recipe(project: Path) -> None:
    """The recipe replaces the method, the map's other values stand above it; two axes cannot both choose one."""
    text = "extends: tiny.yaml\nstudent: {epochs: 4}\ngrid:\n  axes:\n    $method:\n      plain: {recipe: kd, train: {lr: 2e-2}}\n      soft: {recipe: kd, distill: {phases: {train: {losses: {kd: {temperature: 9}}}}}}\n      own: {}\n"
    (project / "specs" / "methods.yaml").write_text(text, "utf-8")
    plain, soft, own = (cell.spec for cell in load_experiment("specs/methods.yaml").cells)
    assert list(plain.distill.phases) == ["train"] and plain.cascade == () and plain.train.lr == 2e-2
    kd = soft.distill.phases["train"].losses.kd
    assert kd and (kd.weight, kd.temperature) == (0.9, 9) and soft.train.lr == 1e-2
    assert list(own.distill.phases) == ["grow", "joint"]
    clash = text.replace("    $method:", "    recipe: [ce, kd]\n    $method:")
    (project / "specs" / "methods.yaml").write_text(clash, "utf-8")
    with pytest.raises(SpecError, match="axes 'recipe' and 'method' both set 'recipe'"):
        load_experiment("specs/methods.yaml")
