"""Phases: warm-ups that end, schedules over a hop, shares of a hop's epochs, and what each loss adds to the total."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagedkd.errors import Interrupted, Place, SpecError
from stagedkd.experiment.run import run
from stagedkd.plan.compile import compile_experiment, compile_plan
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.report.phases import phase_lines
from stagedkd.report.results import LossShares, share_text
from stagedkd.report.terminal import results_tables, shares_table
from stagedkd.report.write import write_report
from stagedkd.spec.load import load_experiment, load_spec
from stagedkd.spec.schedule import PhaseProblem, apportion, phase_epochs
from stagedkd.spec.schema import Losses, Phase, Train
from stagedkd.train.loop import fit
from stagedkd.train.schedule import hop_rate, learning_rate, phase_rates, step_rate
from stagedkd.train.tally import Tally, contributions, count
from tests.conftest import SPECS
from tests.pages import plain
from tests.test_train import GROW_2, PAIRS, job, phase

BASE = """\
data: {kind: shapes, classes: 4, train: 48, val: 16, test: 16}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 16, lr: 1e-2}
teacher: {arch: resnet3d, width: 10, blocks: [1, 1], epochs: 4}
cascade: []
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 6}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {hint: 1}}
    joint: {losses: {ce: 0.1, kd: 0.9}}
"""
OVER_HOP = Train.model_validate({"lr": 1e-2, "batch": 8, "schedule": {"kind": "cosine", "over": "hop"}})


def spec_file(project: Path, *edits: tuple[str, str]) -> Path:
    text = BASE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = project / "specs" / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def refusals(project: Path, *edits: tuple[str, str]) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecError) as caught:
        load_spec(spec_file(project, *edits))
    return [(_at(p.place), p.message, p.hint) for p in caught.value.problems]


def _at(place: Place | None) -> str:
    """The line, and the key that begins at the column, such as `4 warmup_epochs`."""
    assert place is not None
    text = Path(place.file).read_text("utf-8").splitlines()[place.line - 1]
    return f"{place.line} {text[place.column - 1 :].split(':')[0]}"


WARM = ("lr: 1e-2}", "lr: 1e-2, warmup_epochs: 1}")


# ------------------------------------------------------------ warm-ups


@pytest.mark.parametrize(
    ("edits", "at", "message", "hint"),
    [
        (
            (WARM,),
            "4 warmup_epochs",
            "phase 'grow' of the student is all warm-up: warmup_epochs is 1, and each of its substages has 1 epoch",
            "add train: {warmup_epochs: 0} to phase 'grow', or give the phase more epochs",
        ),
        (
            (("epochs: 6}", "epochs: 6, train: {warmup_epochs: 1.5}}"),),
            "7 warmup_epochs",
            "phase 'grow' of the student is all warm-up: warmup_epochs is 1.5, and each of its substages has 1 epoch",
            "add train: {warmup_epochs: 0} to phase 'grow', or give the phase more epochs",
        ),
        (
            (("{losses: {ce", "{train: {warmup_epochs: 4}, losses: {ce"),),
            "11 warmup_epochs",
            "phase 'joint' of the student is all warm-up: warmup_epochs is 4, and it has 4 epochs",
            "set it below 4, or give the phase more epochs",
        ),
        (
            (("epochs: 4}", "epochs: 4, train: {warmup_epochs: 4}}"),),
            "5 warmup_epochs",
            "the training of the teacher of 4 epochs is all warm-up: warmup_epochs is 4",
            "set it below 4, or raise its epochs",
        ),
        (
            (
                ("epochs: 4}", "epochs: 4, train: {warmup_epochs: 1}}"),
                ("distill:", "distill:\n  teacher: {stop: 0.25}"),
            ),
            "5 warmup_epochs",
            "the training of the teacher, stopped after 1 epoch, is all warm-up: warmup_epochs is 1",
            "set it below 1, or raise its epochs",
        ),
        (
            (("cascade: []", "cascade: [{arch: resnet3d, width: 8, blocks: [1, 1], train: {warmup_epochs: 1}}]"),),
            "6 warmup_epochs",
            "phase 'grow' of assistant 1 is all warm-up: warmup_epochs is 1, and each of its substages has 1 epoch",
            "add train: {warmup_epochs: 0} to phase 'grow', or give the phase more epochs",
        ),
        (
            (("cascade: []", "cascade: [{share: 0.3, train: {warmup_epochs: 1}}]"),),
            "6 warmup_epochs",
            "phase 'grow' of assistant 1 is all warm-up: warmup_epochs is 1, and each of its substages has 1 epoch",
            "add train: {warmup_epochs: 0} to phase 'grow', or give the phase more epochs",
        ),
        (
            (
                WARM,
                ("epochs: 1, losses", "epochs: 1, train: {warmup_epochs: 0}, losses"),
                ("cascade: []", "cascade: []\nrefine: {kind: noise_model, by: student, epochs: 1}"),
                ("{ce: 0.1", "{pseudo: 0.1"),
            ),
            "4 warmup_epochs",
            "the out-of-fold training of the student is all warm-up: warmup_epochs is 1, and it has 1 epoch",
            "set it below 1, or raise refine.epochs",
        ),
        (
            (
                ("cascade: []", "cascade: []\nrefine: {kind: noise_model, train: {warmup_epochs: 4}}"),
                ("{ce: 0.1", "{pseudo: 0.1"),
            ),
            "7 warmup_epochs",
            "the out-of-fold training of the teacher is all warm-up: warmup_epochs is 4, and it has 4 epochs",
            "set it below 4, or set refine.epochs",
        ),
        (
            (
                ("epochs: 6}", "epochs: 6, train: {warmup_epochs: 6}}"),
                ("epochs: 1, losses", "epochs: 1, train: {warmup_epochs: 0}, losses"),
                ("joint: {losses: {ce", "joint: {train: {warmup_epochs: 0}, losses: {pseudo"),
                ("cascade: []", "cascade: []\nrefine: {kind: noise_model, by: student}"),
            ),
            "8 warmup_epochs",
            "the out-of-fold training of the student is all warm-up: warmup_epochs is 6, and it has 6 epochs",
            "set it below 6, or set refine.epochs",
        ),
        (
            (
                ("epochs: 6}", "epochs: 6, train: {warmup_epochs: 6}}"),
                ("distill:", "control: ce\ndistill:"),
                ("epochs: 1, losses", "epochs: 1, train: {warmup_epochs: 0}, losses"),
                ("joint: {losses", "joint: {train: {warmup_epochs: 0}, losses"),
            ),
            "7 warmup_epochs",
            "the training of the control is all warm-up: warmup_epochs is 6, and it has 6 epochs",
            "set it below 6, or raise student.epochs",
        ),
        (
            (
                ("lr: 1e-2}", "lr: 1e-2, warmup_epochs: 6, schedule: {kind: cosine, over: hop}}"),
                ("epochs: 4}", "epochs: 9}"),
            ),
            "4 warmup_epochs",
            "the hop of the student is all warm-up: warmup_epochs is 6, and it has 6 epochs",
            "set it below 6, or raise the epochs",
        ),
    ],
)
def test_a_warm_up_as_long_as_its_phase_is_refused_at_its_line(
    project: Path, edits: tuple[tuple[str, str], ...], at: str, message: str, hint: str
) -> None:
    assert refusals(project, *edits) == [(at, message, hint)]


def test_a_warm_up_below_the_phase_is_allowed_and_one_line_is_shown_once(project: Path) -> None:
    half = ("lr: 1e-2}", "lr: 1e-2, warmup_epochs: 0.5}")
    assert load_spec(spec_file(project, half)).train.warmup_epochs == 0.5
    assert len(refusals(project, WARM, ("cascade: []", "cascade: [0.5, 0.3]"))) == 1


def test_recipes_that_grow_for_an_epoch_work_below_a_warm_up_of_one(project: Path) -> None:
    path = spec_file(project, WARM)
    for recipe in ("stagewise", "hint"):
        spec = load_spec(path, [f"recipe={recipe}"])
        work = compile_plan(spec).stage("student").work
        assert isinstance(work, DistillWork)
        assert phase_rates(work.phases, 0) == (1e-2, 1e-2, 0.0)  # it anneals
        assert phase_rates(work.phases, len(work.phases) - 1) == (0.0, 1e-2, 0.0)


def test_the_controls_own_settings_are_checked_and_span_one_phase(project: Path) -> None:
    control = ("distill:", "control: ce\ncontrol_train: {warmup_epochs: 6}\ndistill:")
    ((place, message, _),) = refusals(project, control)
    assert message == "the training of the control is all warm-up: warmup_epochs is 6, and it has 6 epochs"
    assert (
        place.endswith(" warmup_epochs")
        and "control_train" in Path("specs/mine.yaml").read_text("utf-8").splitlines()[int(place.split()[0]) - 1]
    )
    plain, over = (
        compile_plan(load_spec(spec_file(project, ("distill:", f"control: ce\ncontrol_train: {{{text}}}\ndistill:"))))
        for text in ("lr: 3e-3", "lr: 3e-3, schedule: {kind: cosine, over: hop}")
    )
    assert plain.stage("control-ce").key == over.stage("control-ce").key  # it has one phase, so both are the same


def test_every_phase_of_every_shipped_spec_leaves_its_warm_up() -> None:
    for path in SPECS:
        for plan in compile_experiment(load_experiment(path)).cells.values():
            for stage in plan.stages:
                assert all(p.train.warmup_epochs < p.run_epochs for p in stage.work.trainings), (path, stage.name)


# ------------------------------------------------------------ schedules over a hop


@pytest.mark.parametrize(
    ("edits", "at", "message"),
    [
        (
            (("{losses: {ce", "{train: {schedule: constant}, losses: {ce"),),
            "11 schedule",
            "phase 'joint' has another schedule than its hop, but a schedule over the hop is that of all phases",
        ),
        (
            (("{losses: {ce", "{train: {warmup_epochs: 1}, losses: {ce"),),
            "11 warmup_epochs",
            "phase 'joint' has a warm-up, but a schedule over the hop has one, at the start of the hop",
        ),
    ],
)
def test_phases_under_a_schedule_over_the_hop_agree(
    project: Path, edits: tuple[tuple[str, str], ...], at: str, message: str
) -> None:
    hop = ("lr: 1e-2}", "lr: 1e-2, schedule: {kind: cosine, over: hop}}")
    hint = "remove it here, and set it in train or student.train"
    assert refusals(project, hop, *edits) == [(at, message, hint)]


def test_one_phase_alone_cannot_have_a_schedule_over_the_hop(project: Path) -> None:
    found = refusals(project, ("{losses: {ce", "{train: {schedule: {kind: cosine, over: hop}}, losses: {ce"))
    message = "phase 'joint' has another schedule than its hop, but a schedule over the hop is that of all phases"
    assert found == [("11 schedule", message, "remove it here, and set it in train or student.train")]


def test_a_schedule_over_the_phase_has_the_key_of_its_bare_word(project: Path) -> None:
    def keys(schedule: str) -> list[str]:
        plan = compile_plan(load_spec(spec_file(project, ("lr: 1e-2}", f"lr: 1e-2, schedule: {schedule}}}"))))
        return [stage.identity for stage in plan.stages]

    assert keys("cosine") == keys("{kind: cosine}") == keys("{kind: cosine, over: phase}") != keys("constant")
    over_hop = dict(zip(keys("cosine"), keys("{kind: cosine, over: hop}"), strict=True))
    assert sum(a != b for a, b in over_hop.items()) == 2  # the student and its evaluation; a teacher has no phases


def test_the_warm_up_of_a_hop_is_that_of_the_network(project: Path) -> None:
    hop = ("lr: 1e-2}", "lr: 1e-2, warmup_epochs: 2, schedule: {kind: cosine, over: hop}}")
    zero = ("epochs: 1, losses", "epochs: 1, train: {warmup_epochs: 0, lr: 2e-2}, losses")  # as recipes have it
    plan = compile_plan(load_spec(spec_file(project, hop, zero)))
    work = plan.stage("student").work
    assert isinstance(work, DistillWork) and [p.name for p in work.phases] == ["grow.1", "grow.2", "joint"]
    assert [p.train.warmup_epochs for p in work.phases] == [2, 2, 2]
    assert [p.train.lr for p in work.phases] == [2e-2, 2e-2, 1e-2]
    one_phase = ("    grow: {substages: one_by_one, epochs: 1, losses: {hint: 1}}\n", "")
    alone = compile_plan(load_spec(spec_file(project, hop, one_phase))).stage("student").work
    assert isinstance(alone, DistillWork) and alone.phases[0].train.schedule == "cosine"
    teacher = plan.stage("teacher").work
    assert isinstance(teacher, TeachWork) and teacher.phase and teacher.phase.train.schedule == "cosine"


def _by_hand(position: float, lr: float, warmup: float, epochs: float) -> float:
    """Linear from 0 to lr over the warm-up, then half a cosine to 0; by the angle and not by the progress."""
    if position < warmup:
        return lr * position / warmup
    return lr * math.cos(math.pi / 2 * (position - warmup) / (epochs - warmup)) ** 2


def test_rates_at_start_peak_and_end_follow_the_formula() -> None:
    warm = OVER_HOP.model_copy(update={"warmup_epochs": 1.5})
    peaks, lengths = (1e-2, 3e-2, 2e-2), (1, 2, 5)
    phases = tuple(
        phase(name=f"p{i}", epochs=n, train=warm.model_copy(update={"lr": lr}))
        for i, (lr, n) in enumerate(zip(peaks, lengths, strict=True))
    )
    for i, (lr, first, last) in enumerate(zip(peaks, (0, 1, 3), (1, 3, 8), strict=True)):
        start, peak, end = phase_rates(phases, i)
        assert start == pytest.approx(_by_hand(first, lr, 1.5, 8)) and end == pytest.approx(_by_hand(last, lr, 1.5, 8))
        grid = [_by_hand(first + (last - first) * j / 1000, lr, 1.5, 8) for j in range(1001)]
        assert peak == pytest.approx(max(grid))
    stopped = (phase(epochs=10, stop=4, train=Train(lr=1.0, warmup_epochs=2)),)
    assert phase_rates(stopped, 0) == pytest.approx((0, 1, _by_hand(4, 1.0, 2, 10)))
    constant = (phase(epochs=3, train=Train(lr=0.5, schedule="constant", warmup_epochs=1)),)
    assert phase_rates(constant, 0) == (0, 0.5, 0.5)


@pytest.mark.parametrize("shape", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
def test_a_hop_of_equal_phases_has_the_rates_of_one_long_phase(shape: str, warmup: float) -> None:
    values = {"lr": 0.1, "warmup_epochs": warmup}
    long = Train.model_validate({**values, "schedule": shape})
    parts = Train.model_validate({**values, "schedule": {"kind": shape, "over": "hop"}})
    phases = tuple(phase(name=f"p{i}", epochs=n, train=parts) for i, n in enumerate((1, 3, 4)))
    whole = [learning_rate(long, step, 8 * 10, 10) for step in range(80)]
    split = [step_rate(phases, i, step, 10) for i, p in enumerate(phases) for step in range(p.epochs * 10)]
    assert split == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_no_step_of_a_warm_up_has_a_rate_of_zero() -> None:
    warm = OVER_HOP.model_copy(update={"warmup_epochs": 0.25})
    assert hop_rate(warm, 0.0, 4, step=1.0) == warm.lr and 0 < hop_rate(warm, 0.0, 4, step=0.1) < warm.lr


def test_plan_shows_the_rates_of_each_phase(project: Path) -> None:
    hop = ("lr: 1e-2}", "lr: 1e-2, warmup_epochs: 1, schedule: {kind: cosine, over: hop}}")
    lines = list(
        phase_lines(compile_experiment(load_experiment(spec_file(project, hop, ("distill:", "control: ce\ndistill:")))))
    )
    middle = f"{_by_hand(2, 1e-2, 1, 6):.3g}"
    for expected in (
        "teacher: train: 4 epochs, adamw lr 0.01 cosine (starts at 0, peaks at 0.01, ends at 0), losses ce 1",
        "  grow.1: 1 epoch, adamw lr 0.01 cosine over the hop (starts at 0, peaks at 0.01, ends at 0.01)",
        f"  grow.2: 1 epoch, adamw lr 0.01 cosine over the hop (starts at 0.01, peaks at 0.01, ends at {middle})",
        f"  joint: 4 epochs, adamw lr 0.01 cosine over the hop (starts at {middle}, peaks at {middle}, ends at 0)",
        "control-ce: train: 6 epochs, adamw lr 0.01 cosine (starts at 0, peaks at 0.01, ends at 0), losses ce 1",
    ):
        assert expected in lines


def over_hop_phases() -> tuple[PhaseWork, ...]:
    warm = OVER_HOP.model_copy(update={"warmup_epochs": 1.0})
    grow = GROW_2.model_copy(update={"name": "grow", "train": warm})
    both = Losses.model_validate({"ce": 0.1, "kd": 0.9})
    return grow, phase(name="joint", epochs=2, losses=both, train=warm.model_copy(update={"batch": 12}))


def test_a_stopped_training_resumes_with_the_rates_and_shares_of_a_whole_one(tmp_path: Path) -> None:
    phases = over_hop_phases()
    whole = job(tmp_path / "whole", phases)
    end = fit(whole)
    calls = iter([None, None, None, None, 15])  # a signal in the second phase, whose epochs have fewer steps
    with pytest.raises(Interrupted):
        fit(job(tmp_path / "parts", phases, interrupted=lambda: next(calls), checkpoint_seconds=0.0))
    parts = job(tmp_path / "parts", phases)
    resumed = fit(parts)
    for (name, a), b in zip(whole.student.state_dict().items(), parts.student.state_dict().values(), strict=True):
        assert a.equal(b), name
    assert resumed.tallies == end.tallies and set(end.tallies) == {"grow", "joint"}
    events = [_epochs(tmp_path / which) for which in ("whole", "parts")]
    assert events[0] == events[1]
    steps = {"grow": 3, "joint": 2}
    rates = [step_rate(phases, 0, 2, steps["grow"]), *(step_rate(phases, 1, n, steps["joint"]) for n in (1, 3))]
    assert [row["lr"] for row in events[0]] == rates


def _epochs(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    volatile = ("time", "clips_per_s", "crc")
    return [{k: v for k, v in row.items() if k not in volatile} for row in rows if row["event"] == "epoch"]


# ------------------------------------------------------------ shares of a hop


def declared(**phases: dict[str, Any]) -> dict[str, Phase]:
    return {name: Phase.model_validate({"losses": {"kd": 1.0}} | fields) for name, fields in phases.items()}


def test_shares_become_whole_epochs_by_hand() -> None:
    grow, hint = {"share": 0.3, "substages": "one_by_one"}, {"losses": {"hint": 1.0}}
    # 3 of 10 epochs for three substages, and the rest
    assert phase_epochs(declared(grow=grow | hint, joint={}), 10, 3) == {"grow": (1, 1, 1), "joint": (7,)}
    # 0.3 x 17 = 5.1, so 5 epochs: the first two substages have one more
    assert phase_epochs(declared(grow=grow | hint, joint={}), 17, 3) == {"grow": (2, 2, 1), "joint": (12,)}
    # 3.5 + 3.5: equal remainders, and the first is served first
    assert phase_epochs(declared(a={"share": 0.5}, b={"share": 0.5}), 7, 1) == {"a": (4,), "b": (3,)}
    # 1.1 + 1.1 + 8.8 of 11
    three = declared(a={"share": 0.1}, b={"share": 0.1}, c={"share": 0.8})
    assert phase_epochs(three, 11, 1) == {"a": (1,), "b": (1,), "c": (9,)}
    # the least of one epoch is paid by the phase that is furthest above its quota
    tiny = declared(a={"share": 0.01}, b={"share": 0.99})
    assert phase_epochs(tiny, 10, 1) == {"a": (1,), "b": (9,)}
    # beside fixed epochs
    assert phase_epochs(declared(a={"epochs": 4}, b={"share": 0.6}), 10, 1) == {"a": (4,), "b": (6,)}


@given(st.data())
def test_shares_add_up_to_the_hop(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
    kinds = data.draw(st.lists(st.booleans(), min_size=len(weights), max_size=len(weights)))
    parts = data.draw(st.integers(1, 5))
    with_rest = data.draw(st.booleans())
    whole = sum(weights) + (10 if with_rest else 0)
    phases = declared(
        **{
            f"p{i}": {"share": w / whole, "substages": "one_by_one" if each else "all", "losses": {"hint": 1.0}}
            for i, (w, each) in enumerate(zip(weights, kinds, strict=True))
        },
        **({"rest": {}} if with_rest else {}),
    )
    total = data.draw(st.integers(1, 300))
    least = sum(parts if each else 1 for each in kinds) + with_rest
    try:
        epochs = phase_epochs(phases, total, parts)
    except PhaseProblem as problem:
        assert total < 2 * least or total < 2 * sum(weights), problem
        return
    assert sum(map(sum, epochs.values())) == total
    for i, (w, each) in enumerate(zip(weights, kinds, strict=True)):
        spans = epochs[f"p{i}"]
        assert len(spans) == (parts if each else 1) and min(spans) >= 1 and max(spans) - min(spans) <= 1
        if total > 50 * least:
            assert abs(sum(spans) - w / whole * total) <= 1 + least


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 40))
def test_apportioning_stays_within_one_of_the_quota_without_least_numbers(weights: list[int], total: int) -> None:
    quotas = [Fraction(w * total, sum(weights) or 1) for w in weights]
    counts = apportion(quotas, [0] * len(weights), total)
    assert sum(counts) == total
    assert not sum(weights) or all(abs(n - quota) < 1 for n, quota in zip(counts, quotas, strict=True))


@pytest.mark.parametrize(
    ("edits", "found"),
    [
        (
            (("epochs: 1, losses", "epochs: 1, share: 0.5, losses"),),
            ("10 share", "phase 'grow' has epochs and a share", "remove one of the two"),
        ),
        (
            (("epochs: 1, losses", "share: 0.5, losses"), (", epochs: 6}", "}")),
            ("10 share", "phase 'grow' has a share, but the hop has no epochs", "add student.epochs"),
        ),
        (
            (("epochs: 1, losses", "share: 0.5, losses"), ("joint: {", "joint: {share: 0.4, ")),
            (
                "11 share",
                "the shares add up to 0.9: that is 5.4 epochs of 6",
                "change the shares, or remove one: that phase gets the rest",
            ),
        ),
        (
            (("epochs: 1, losses", "epochs: 2, losses"), ("joint: {", "joint: {share: 0.5, ")),
            (
                "11 share",
                "the shares add up to 0.5 and the epochs of the other phases to 4 of 6: that is 7 epochs of 6",
                "change the shares, or remove one: that phase gets the rest",
            ),
        ),
        (
            (
                ("epochs: 1, losses", "share: 0.1, losses"),
                ("joint: {", "joint: {share: 0.9, "),
                ("epochs: 6}", "epochs: 2}"),
            ),
            (
                "10 share",
                "phase 'grow' gets less than an epoch for each substage",
                "raise its share, or student.epochs above 2",
            ),
        ),
        (
            (("epochs: 1, losses", "share: 0.9, losses"), ("epochs: 6}", "epochs: 2}")),
            ("11 joint", "phase 'joint' trains nothing: the others take 2 of 2 epochs", "raise student.epochs above 2"),
        ),
    ],
)
def test_shares_that_cannot_be_are_refused_at_their_place(
    project: Path, edits: tuple[tuple[str, str], ...], found: tuple[str, str, str]
) -> None:
    assert refusals(project, *edits) == [found]


def test_shares_reach_the_plan_and_an_assistant_with_epochs_of_its_own(project: Path) -> None:
    edits = (("epochs: 1, losses", "share: 0.5, losses"), ("cascade: []", "cascade: [{share: 0.3, epochs: 10}]"))
    plan = compile_plan(load_spec(spec_file(project, *edits)))
    spans = {name: [p.epochs for p in plan.stage(name).work.trainings] for name in ("assistant-1", "student")}
    assert spans == {"assistant-1": [3, 2, 5], "student": [2, 1, 3]}


# ------------------------------------------------------------ phases that leave the head behind


def test_a_childs_grow_phase_over_a_parents_train_phase_is_said(project: Path) -> None:
    grow = "    grow: {substages: one_by_one, epochs: 1, losses: {hint: 1}}\n"
    spec_file(project, (grow, ""), ("joint", "train"))
    child = project / "specs" / "child.yaml"
    child.write_text(f"extends: mine.yaml\ndistill:\n  phases:\n{grow}", "utf-8")
    experiment = load_experiment(child)
    message = (
        "the last phase 'grow' trains no head: it moves features after 'train' has trained the head, and no later phase "
        "trains it; give 'grow' a loss on logits or labels, or list all phases in another order, below $replace"
    )
    assert [(p.message, _at(p.place), p.severity) for p in experiment.notes] == [(message, "4 grow", "warning")]
    assert message in compile_plan(experiment.cells[0].spec).notes  # so `run` says it, too
    ordered = f"extends: mine.yaml\ndistill:\n  phases:\n    $replace:\n  {grow}      train: {{losses: {{ce: 1}}}}\n"
    child.write_text(ordered, "utf-8")
    assert load_experiment(child).notes == ()


def test_a_phase_in_between_that_leaves_the_head_behind_is_said(project: Path) -> None:
    first = ("    grow:", "    warm: {epochs: 1, losses: {kd: 1}}\n    grow:")
    (note,) = load_experiment(spec_file(project, first)).notes
    assert note.message == (
        "phase 'grow' trains no head: it moves features after 'warm' has trained the head, until 'joint' trains it "
        "again; give 'grow' a loss on logits or labels, or list all phases in another order, below $replace"
    )
    assert load_experiment(spec_file(project)).notes == ()


# ------------------------------------------------------------ what each loss adds to the total


def test_contributions_by_hand() -> None:
    tally: Tally = {}
    count(tally, {"ce": 1.0, "crd": -3.0})
    count(tally, {"ce": 3.0, "crd": 1.0})
    assert contributions(tally) == {"ce": {"mean": 2.0, "share": 0.5}, "crd": {"mean": -1.0, "share": 0.5}}
    assert contributions({"ce": [0.0, 0.0, 2.0]}) == {"ce": {"mean": 0.0, "share": 0.0}}


def test_a_training_logs_the_weighted_terms_and_their_shares(tmp_path: Path) -> None:
    named = Losses.model_validate({"ce": {"weight": 0.5, "schedule": "linear", "to": 0.1}, "kd": 0.9, "hint": 2.0})
    at = fit(job(tmp_path, (phase(epochs=2, losses=named, pairs=PAIRS),)))
    rows = _epochs(tmp_path)
    for row in rows:
        terms = row["terms"]
        assert terms["kd"]["mean"] == pytest.approx(0.9 * row["losses"]["kd"])
        assert terms["hint"]["mean"] == pytest.approx(2.0 * row["losses"]["hint"])
        assert sum(term["mean"] for term in terms.values()) == pytest.approx(row["losses"]["total"])
        assert terms["kd"]["share"] == pytest.approx(terms["kd"]["mean"] / row["losses"]["total"])  # all are positive
    whole = contributions(at.tallies["p"])
    for name, term in whole.items():
        assert term["mean"] == pytest.approx(sum(row["terms"][name]["mean"] for row in rows) / 2)
    assert sum(term["share"] for term in whole.values()) == pytest.approx(1)


def test_a_loss_that_does_nothing_is_said() -> None:
    row = LossShares("student", "joint", {"kd": 0.9948, "sp": 0.0002, "hint": 0.005})
    assert row.notes == (
        "the loss 'sp' is below 1% of the total in phase 'joint' of the student: raise its weight, or remove it",
        "the loss 'hint' is below 1% of the total in phase 'joint' of the student: raise its weight, or remove it",
    )
    assert LossShares("student", "joint", {"kd": 0.99, "sp": 0.01}).notes == ()
    assert [share_text(s) for s in (0.9948, 0.0002, 0.0, None)] == ["99.5%", "0.02%", "0.0%", ""]
    table = shares_table([row, LossShares("student", "grow.1", {"hint": 1.0, "sp": 0.0})])
    assert [str(c.header) for c in table.columns] == ["network", "phase", "kd", "sp", "hint"]
    assert [list(c.cells) for c in table.columns][2:] == [["99.5%", ""], ["0.02%", "0.0%"], ["0.5%", "100.0%"]]


@pytest.mark.slow
def test_the_report_shows_the_shares_and_the_loss_that_does_nothing(project: Path) -> None:
    edits = (
        ("{ce: 0.1, kd: 0.9}", "{ce: 0.1, kd: 0.9, sp: 1e-6}"),
        ("epochs: 4}", "epochs: 1}"),
        ("epochs: 6}", "epochs: 3}"),
        ("labels: {clean: 0.5}", "labels: {clean: 0.5}\naugment: {crop: 1.0, jitter: 0.0}"),
    )
    spec = load_spec(spec_file(project, *edits))
    outcome = run(spec)
    terms = outcome.artifacts["student"].manifest.metrics["terms"]
    assert list(terms) == ["grow.1", "grow.2", "joint"] and list(terms["grow.1"]) == ["hint"]
    results = write_report(outcome.plan, outcome.runtime)
    assert [(row.network, row.phase) for row in results.loss_shares] == [("student", "joint")]
    shares = dict(results.loss_shares[0].shares)
    assert sum(shares.values()) == pytest.approx(1) and shares["sp"] < 0.01 < min(shares["ce"], shares["kd"])
    note = "the loss 'sp' is below 1% of the total in phase 'joint' of the student: raise its weight, or remove it"
    assert note in results.notes
    folder = project / "results" / "mine"
    page = plain((folder / "report.html").read_text("utf-8"))
    row = f"<tr><th>student</th><td>joint</td><td>{share_text(shares['ce'])}</td>"
    assert "<h2>Shares of the losses</h2>" in page and row in page and note.replace("'", "&#39;") in page
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["student"]["loss_shares"] == {"joint": shares} and "loss_shares" not in summary["teacher"]
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert metrics["loss_shares"] == [{"network": "student", "phase": "joint", "shares": shares}]
    assert len(list(results_tables(results))) == 2
