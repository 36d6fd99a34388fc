"""Fair comparison: a declared comparison, robust statistics, unequal effort, draws of seeds, dead channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]
from torch import nn

from stagedkd.errors import SpecError
from stagedkd.models.network import Anatomy, Network
from stagedkd.plan.compile import compile_experiment
from stagedkd.report.comparison import Comparison, Effort, power_notes, unequal
from stagedkd.report.grid import GridResults, find_baseline
from stagedkd.report.statistics import failed_seeds, iqm, paired
from stagedkd.spec.load import load_experiment
from stagedkd.train.dead import dead_share
from tests.conftest import Command
from tests.pages import compare_with
from tests.test_report import _students as students  # pyright: ignore[reportPrivateUsage]

SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
train: {batch: 16, warmup_epochs: 0}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1], epochs: 1}
distill: {phases: {train: {losses: {ce: 1.0, kd: 1.0}}}}
"""
GRID = "grid: {seeds: 2, axes: {$method: {kd: {recipe: kd}, ce: {recipe: ce}, dkd: {recipe: dkd}}}}\n"


def load(text: str):
    Path("x.yaml").write_text(SPEC + text, "utf-8")
    return load_experiment("x.yaml")


def refused(text: str) -> tuple[str, str, str]:
    with pytest.raises(SpecError) as caught:
        load(text)
    problem = caught.value.problems[0]
    return str(problem.place), problem.message, problem.hint


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", [4, 8, 12, 40])
def test_iqm_is_a_trimmed_mean_where_a_quarter_is_whole(n: int) -> None:
    values = np.random.default_rng(n).random(n).tolist()
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-15)  # pyright: ignore


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 10, 13])
def test_iqm_is_that_of_each_value_four_times(n: int) -> None:
    """n values, each four times, are 4n values, of which a quarter is whole."""
    values = np.random.default_rng(n).random(n).tolist()
    assert iqm(values) == pytest.approx(stats.trim_mean(np.repeat(values, 4), 0.25), abs=1e-15)  # pyright: ignore


def test_iqm_by_hand() -> None:
    assert iqm([0.9, 0.5, 0.1]) == pytest.approx((0.1 / 4 + 0.5 + 0.9 / 4) / 1.5)
    assert iqm([0.0, 0.8, 0.9, 1.0]) == pytest.approx(0.85)  # the failed seed does not count
    with pytest.raises(ValueError, match="no value"):
        iqm([])


def test_failed_seeds_are_below_four_fifths_of_the_median() -> None:
    assert failed_seeds([0.5, 0.5, 0.39, 0.4, 0.9]) == 1  # the median is 0.5; 0.4 has not failed
    assert failed_seeds([0.7]) == 0 and failed_seeds([]) == 0


# ---------------------------------------------------------------- the declared comparison


def test_the_primary_comparison_is_tested_alone() -> None:
    base = [0.50, 0.51, 0.52, 0.53, 0.54, 0.55]
    better, noise = [v + 0.1 + i / 1000 for i, v in enumerate(base)], [v + (-1) ** i / 100 for i, v in enumerate(base)]
    settings = {
        "kd": students("kd", base),
        "staged": students("st", better),
        "ce": students("ce", noise),
        "dkd": students("dk", better),
    }
    plain, declared = compare_with(settings, "kd"), compare_with(settings, "kd", "staged")
    alone, ce, dkd = (paired(values, base).p for values in (better, noise, better))
    assert alone is not None and ce is not None and dkd is not None
    assert declared["staged"].p_holm == alone == pytest.approx(2 / 2**6) and plain["staged"].p_holm == 3 * alone
    assert declared["dkd"].p_holm == min(1.0, 2 * dkd) and declared["ce"].p_holm == max(min(1.0, 2 * dkd), ce)
    assert declared["staged"].finding == "primary: better" and plain["staged"].finding == "not shown"
    assert declared["dkd"].finding == "exploratory: not shown"
    assert {c.role for c in plain.values()} == {""}
    assert declared["staged"].as_json()["role"] == "primary"
    assert list(power_notes(declared)) == [
        "6 seeds cannot reach p < 0.05 in 2 comparisons: the smallest corrected p is 0.0625"
    ]


def test_too_few_seeds_for_the_primary_comparison_are_said() -> None:
    base = [0.1, 0.2, 0.3]
    found = compare_with({"a": students("a", base), "b": students("b", [0.2, 0.4, 0.5])}, "a", "b")
    assert list(power_notes(found)) == ["3 seeds cannot show the primary comparison: the smallest p is 0.25"]


def test_what_is_unequal_is_said_above_a_twentieth() -> None:
    base = Effort(1000, 80, 12)
    assert unequal(Effort(1050, 84, 12), base) == ()
    assert unequal(Effort(1060, 76, 12), base) == ("1.06 x the compute of all hops",)
    assert unequal(Effort(940, 800, 24), base) == (
        "0.94 x the compute of all hops",
        "10 x the labelled clips",
        "2 x the trainings to tune",
    )
    assert unequal(Effort(None, None, None), base) == () and unequal(base, Effort()) == ()
    assert unequal(Effort(teacher=2 * 10**12), Effort(teacher=0)) == (
        "2.00 TFLOPs of compute of the teacher, the baseline none",
    )
    assert unequal(Effort(teacher=138), Effort(teacher=100)) == ("1.38 x the compute of the teacher",)
    assert unequal(Effort(taken=True), Effort(taken=True)) == ("values tuned for others",)  # tune.at
    assert unequal(Effort(), Effort(taken=True)) == ("the baseline's values tuned for others",)
    assert unequal(Effort(1, 5, None), Effort(1, 0, None)) == ("5 labelled clips, the baseline none",)
    assert Comparison(None, None, "the same networks", "exploratory", ("a",)).finding == "-; the same networks; a"


def test_a_spec_declares_its_comparison(project: Path) -> None:
    plans = compile_experiment(load(GRID + "compare: {baseline: ce, primary: method=dkd}\n"))
    assert plans.declared is not None
    assert (plans.declared.baseline, plans.declared.primary) == ({"method": "ce"}, {"method": "dkd"})
    assert find_baseline(plans, "") == {"method": "ce"} and find_baseline(plans, "method=kd") == {"method": "kd"}
    assert compile_experiment(load(GRID)).declared is None


@pytest.mark.parametrize(
    ("compare_text", "place", "message", "hint"),
    [
        (
            "{baseline: kd, primary: dkt}",
            "x.yaml:8:34",
            "compare.primary: there is no setting 'dkt'",
            "did you mean 'dkd'?",
        ),
        ("{baseline: kd, primary: kd}", "x.yaml:8:34", "compare.primary is the baseline itself", "name another"),
        (
            "{baseline: kd}",
            "x.yaml:8:1",
            "compare needs primary",
            "for example compare: {baseline: kd, primary: staged}",
        ),
        ("{baselin: kd, primary: ce}", "x.yaml:8:11", "unknown key 'compare.baselin'", "did you mean 'baseline'?"),
        ("kd", "x.yaml:8:10", "'compare' must be a map", "for example compare: {baseline: kd, primary: staged}"),
    ],
)
def test_a_wrong_declaration_is_refused(project: Path, compare_text: str, place: str, message: str, hint: str) -> None:
    assert refused(GRID + f"compare: {compare_text}\n") == (place, message, hint)


def test_a_declaration_needs_settings(project: Path) -> None:
    message = "compare needs a grid with two settings or more"
    assert refused("compare: {baseline: a, primary: b}\n")[1:] == (message, "add grid.axes")


# ---------------------------------------------------------------- what a seed draws


def identities(text: str) -> list[dict[str, str]]:
    plans = compile_experiment(load(text)).cells.values()
    return [{stage.name: stage.identity for stage in plan.stages} for plan in plans]


def test_a_seed_draws_the_student_alone_by_default(project: Path) -> None:
    assert identities("grid: {seeds: 2}\n") == identities("grid: {seeds: 2, vary: [student]}\n")
    first, second = identities("grid: {seeds: 2}\n")
    assert [name for name in first if first[name] != second[name]] == ["student", "evaluate-student"]


@pytest.mark.parametrize(
    ("vary", "changed", "given"),
    [
        ("[teacher]", {"teacher", "student"}, ("data", "labels")),
        ("[labels, student]", {"labels", "teacher", "student"}, ("data",)),
        ("[data, labels, teacher, student]", {"data", "labels", "teacher", "student"}, ()),
        ("[student]", {"student"}, ("data", "labels", "teacher")),
    ],
)
def test_vary_draws_what_it_names(project: Path, vary: str, changed: set[str], given: tuple[str, ...]) -> None:
    text = f"labels: {{clean: 0.5}}\ngrid: {{seeds: [3, 4], vary: {vary}}}\n"
    first, second = identities(text)
    assert {n for n in first if first[n] != second[n] and not n.startswith("evaluate")} == changed
    plans = compile_experiment(load(text))
    assert GridResults(plans, {}, {}, {}).drawn_once == given
    cell = plans.cells["seed=4"].spec
    assert cell.seed == (4 if "student" in vary else 0) and cell.teacher.seed == (4 if "teacher" in vary else 0)


def test_an_included_seed_draws_alike(project: Path) -> None:
    grid = "grid: {seeds: 2, vary: [labels, student], axes: {train.lr: [1e-3]}, include: [{train.lr: 1e-3, seed: 9}]}\n"
    cells = {cell.name: cell.spec for cell in load(grid).cells}
    assert (cells["train.lr=0.001,seed=9"].labels.seed, cells["train.lr=0.001,seed=9"].seed) == (9, 9)


@pytest.mark.parametrize(
    ("grid", "message", "hint"),
    [
        ("{seeds: 2, vary: [label]}", "a seed cannot draw 'label' again", "did you mean 'labels'?"),
        ("{seeds: 2, vary: [data, data]}", "'data' is listed twice", "remove one of them"),
        ("{axes: {seed: [1]}, vary: [data]}", "'grid.vary' needs 'grid.seeds'", "add seeds: 3"),
        (
            "{seeds: 2, vary: data}",
            "'grid.vary' must be a list of what a seed draws again",
            "for example vary: [data, labels, teacher, student]",
        ),
        (
            "{seeds: 2, vary: [data], axes: {data.seed: [1, 2]}}",
            "'seeds' and an axis both set 'data.seed'",
            "remove one of them",
        ),
    ],
)
def test_a_wrong_vary_is_refused(project: Path, grid: str, message: str, hint: str) -> None:
    assert refused(f"grid: {grid}\n")[1:] == (message, hint)


# ---------------------------------------------------------------- the control's own training


def test_the_control_may_be_trained_otherwise(project: Path) -> None:
    def rate(text: str) -> float:
        work = compile_experiment(load(text)).cells[""].stage("control-ce").work
        return work.trainings[0].train.lr

    assert rate("control: ce\n") == 1e-3
    assert rate("control: ce\ncontrol_train: {lr: 3e-2}\n") == 3e-2
    assert refused("control_train: {lr: 3e-2}\n")[1:] == ("control_train has no control", "add control: ce")


# ---------------------------------------------------------------- dead channels


class Fixed(nn.Module):
    """Channel 0 is alive, 1 is 0, 2 is constant, 3 differs between the two batches alone."""

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        x = clip_BCTHW[:, :1]
        return torch.cat([x, torch.zeros_like(x), torch.full_like(x, 5), torch.full_like(x, float(x.amax()))], 1)


def test_dead_channels_are_constant_over_all_clips() -> None:
    net = nn.Sequential(Fixed(), nn.Identity())
    network = Network(net, Anatomy({"first": ("0",)}, ("1",), lambda _, state: state.mean((2, 3, 4))))
    torch.manual_seed(0)
    one, two = torch.rand(2, 3, 2, 4, 4), 2 + torch.rand(3, 3, 2, 4, 4)
    assert dead_share(network, [one, two], ["first"]) == 2 / 4
    assert dead_share(network, [one], ["first"]) == 3 / 4
    assert dead_share(network, [], ["first"]) is None and dead_share(network, [one], []) is None


@pytest.mark.slow
def test_the_report_says_it_all(project: Path, stagedkd: Command) -> None:
    grid = "grid: {seeds: 2, axes: {$m: {kd: {recipe: kd}, ce: {recipe: ce, student: {epochs: 2}}}}}\n"
    Path("x.yaml").write_text(SPEC + grid + "compare: {baseline: kd, primary: ce}\n", "utf-8")
    done = stagedkd("run", "x.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
    for text in ("IQM", "failed", "dead", "primary: not shown", "x the compute of all hops", "p, alone or Holm"):
        assert text in done.stdout, text
    assert "given one draw of data, labels and teacher" in done.stdout
    (html,) = Path().rglob("report.html")
    page = " ".join(html.read_text("utf-8").split())
    assert "The primary comparison, that of m=ce, was declared before; it is tested alone." in page
    other = stagedkd("show", "x.yaml", "--baseline", "m=ce")
    assert "the declared comparison, m=ce with m=kd, is not shown: every comparison here is exploratory" in other.stdout
