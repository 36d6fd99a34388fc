"""The batches of a training by label: the share of labelled clips, classes in balance, and weights of classes."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagedkd import load_spec, losses
from stagedkd.data.mix import Batch
from stagedkd.data.source import SimulatedClips
from stagedkd.errors import DataError, SpecError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.work import DistillWork
from stagedkd.spec.schema import Augment, Clip, Losses, Simulated, Train
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.feed import Feed
from stagedkd.train.order import class_weights, labelled_before
from stagedkd.train.response_terms import Responses, label_losses
from stagedkd.train.step import StepModel, StepModels
from tests.conftest import Command

CPU = torch.device("cpu")
BOTH = {"ce": 1.0, "kd": 1.0}


def weighted_ce(logits_BN: Tensor, labels_B: Tensor, weights_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy as a step computes it under `train.class_weights`."""
    named = Losses.model_validate({"ce": {"weight": 1.0, "smoothing": smoothing}})
    return step_values(named, logits_BN, Batch(logits_BN, labels_B, class_weights_N=weights_N))["ce"]


def step_values(named: Losses, logits_BN: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The losses on labels of a step whose student has these logits."""
    models = StepModels(StepModel(lambda *_, **__: ({}, None)), (), FeatureAdapters(), CPU)
    return label_losses(models, named, Responses(logits_BN), batch)


def feed_of(labels: list[int], seed: int = 5) -> Feed:
    """A feed of as many clips as there are labels; it loads none of them unless a test asks for a batch."""
    source = SimulatedClips(Simulated(kind="shapes", classes=4), ["train"] * len(labels), Clip(frames=4, size=16), CPU)
    names = ("a", "b", "c", "d")
    return Feed(source, np.arange(len(labels)), np.array(labels), Augment(), seed, classes=names)


def phase_of(named: dict[str, float], **train: object) -> PhaseWork:
    return PhaseWork(
        name="p",
        epochs=1,
        trained=(0,),
        frozen=(),
        pairs=(),
        head=True,
        losses=Losses.model_validate(named),
        train=Train.model_validate(train),
    )


def rows_of(feed: Feed, phase: PhaseWork, steps: range, number: int = 0) -> list[int]:
    return [row for step in steps for row in feed.pick(phase, number, step).rows.tolist()]


LABELS = st.lists(st.integers(-1, 3), min_size=2, max_size=24).filter(lambda labels: max(labels) >= 0)


@settings(max_examples=30)
@given(LABELS, st.sampled_from([0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0]), st.integers(1, 9), st.integers(0, 15))
def test_any_number_of_batches_holds_the_share_of_labelled_clips(
    labels: list[int], share: float, batch: int, steps: int
) -> None:
    feed, phase = feed_of(labels), phase_of(BOTH, batch=batch, labelled=share)
    rows = rows_of(feed, phase, range(steps))
    count = sum(labels[row] >= 0 for row in rows)
    exact = Fraction(str(share)) * batch * steps
    assert len(rows) == batch * steps
    assert count == (math.ceil(exact) if min(labels) < 0 else len(rows))


@settings(max_examples=20)
@given(LABELS, st.sampled_from([0.1, 0.5, 0.75]), st.sampled_from([None, "classes"]), st.integers(1, 9))
def test_labelled_and_unlabelled_clips_each_come_in_turn(
    labels: list[int], share: float, balance: str | None, batch: int
) -> None:
    feed, phase = feed_of(labels), phase_of(BOTH, batch=batch, labelled=share, balance=balance)
    rows = rows_of(feed, phase, range(15))
    for label in sorted(set(labels)) if balance else [-1, None]:
        own = {i for i, y in enumerate(labels) if (y == label if label is not None else y >= 0)}
        drawn = [row for row in rows if row in own]
        for start in range(0, len(drawn) - len(own) + 1, max(1, len(own))) if own else []:
            assert set(drawn[start : start + len(own)]) == own


@settings(max_examples=20)
@given(LABELS, st.integers(1, 9), st.sampled_from([{"ce": 1.0}, BOTH]))
def test_balanced_draws_hold_each_class_once_in_a_round(labels: list[int], batch: int, named: dict[str, float]) -> None:
    feed, phase = feed_of(labels), phase_of(named, batch=batch, labelled=0.5, balance="classes")
    drawn = [labels[row] for row in rows_of(feed, phase, range(15)) if labels[row] >= 0]
    classes = sorted({y for y in labels if y >= 0})
    for start in range(0, len(drawn) - len(classes) + 1, len(classes)):
        assert sorted(drawn[start : start + len(classes)]) == classes


@pytest.mark.parametrize("balance", [None, "classes"])
def test_seed_phase_and_step_alone_determine_a_batch(balance: str | None) -> None:
    labels = [0, 0, 0, 0, 1, 2, *[-1] * 20]
    phase = phase_of(BOTH, batch=8, labelled=0.5, balance=balance)
    whole = rows_of(feed_of(labels), phase, range(12))
    late = feed_of(labels)
    assert rows_of(late, phase, range(7, 12)) == whole[56:]  # a resumed training asks for step 7 first
    picked, again = late.pick(phase, 0, 3), feed_of(labels).pick(phase, 0, 3)
    assert picked.rows.tolist() == again.rows.tolist() and picked.epoch == again.epoch
    assert rows_of(late, phase, range(12), number=1) != whole
    assert rows_of(feed_of(labels, seed=6), phase, range(12)) != whole


def test_without_the_new_settings_batches_are_as_before() -> None:
    """The rows were printed by the version before `labelled` and `balance`."""
    feed = feed_of([0, 1, 2, 3, -1, -1, -1, -1, -1, -1])
    assert rows_of(feed, phase_of(BOTH, batch=4), range(3)) == OLD_ALL
    assert rows_of(feed, phase_of({"ce": 1.0}, batch=4), range(3)) == OLD_CE
    full = feed_of([0, 1, 2, 3, 0, 1])
    assert rows_of(full, phase_of(BOTH, batch=4), range(6)) == rows_of(
        full, phase_of(BOTH, batch=4, labelled=0.5), range(6)
    )


OLD_ALL = [8, 7, 2, 5, 6, 0, 3, 9, 1, 4, 1, 4]
OLD_CE = [2, 0, 3, 1, 1, 2, 0, 3, 2, 1, 0, 3]


def test_labelled_before_reads_the_share_as_a_decimal_number() -> None:
    assert [labelled_before(0.1, 10 * n) for n in range(5)] == [0, 1, 2, 3, 4]
    assert labelled_before(0.7, 10) == 7 and labelled_before(1 / 3, 3) == 1


def test_a_draw_of_labelled_clips_without_one_is_refused() -> None:
    with pytest.raises(DataError, match="the phase p draws labelled clips, and no training clip has a label") as caught:
        feed_of([-1, -1]).pick(phase_of(BOTH, labelled=0.5), 0, 0)
    assert caught.value.hint == "raise labels.clean or labels.noisy"


def test_weighted_cross_entropy_by_its_formula() -> None:
    dice = np.random.default_rng(0)
    logits, labels = dice.normal(size=(7, 4)) * 3, np.array([0, 1, 3, -1, 3, -1, 2])
    weights = np.array([0.5, 2.0, 1.0, 3.0])
    for smoothing in (0.0, 0.2):
        over = under = 0.0
        for row, label in zip(logits, labels, strict=True):
            if label >= 0:
                log_p = row - np.log(np.exp(row).sum())
                target = np.full(4, smoothing / 4)
                target[label] += 1 - smoothing
                over += weights[label] * -(target * log_p).sum()
                under += weights[label]
        value = weighted_ce(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights), smoothing)
        assert value.item() == pytest.approx(over / under, rel=1e-12)
    ones = weighted_ce(torch.from_numpy(logits), torch.from_numpy(labels), torch.ones(4))
    assert ones.item() == pytest.approx(losses.ce(torch.from_numpy(logits), torch.from_numpy(labels)).item(), rel=1e-12)
    none = torch.zeros(2, 4, requires_grad=True)
    assert weighted_ce(none, torch.tensor([-1, -1]), torch.ones(4)).item() == 0


def test_the_step_weighs_ce_and_no_other_loss() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, weights = torch.tensor([0, 1, 2, 3, 0, -1]), torch.tensor([4.0, 1.0, 1.0, 1.0])
    posterior, accepted = torch.full((6, 4), 0.25, dtype=torch.float64), torch.ones(6, dtype=torch.bool)
    named = Losses.model_validate({"ce": 1.0, "pseudo": 1.0})
    plain = step_values(named, logits, Batch(logits, labels, posterior_BN=posterior, accepted_B=accepted))
    batch = Batch(logits, labels, posterior_BN=posterior, accepted_B=accepted, class_weights_N=weights)
    weighted = step_values(named, logits, batch)
    assert weighted["ce"].item() == pytest.approx(weighted_ce(logits, labels, weights).item())
    assert weighted["ce"].item() != pytest.approx(plain["ce"].item())
    assert weighted["pseudo"].item() == plain["pseudo"].item()


def test_class_weights_of_every_form() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, -1])
    names = ("a", "b", "c", "d")
    assert class_weights("inverse", names, labels).tolist() == pytest.approx([6 / 9, 2.0, 1.0, 1.0])
    assert class_weights((1.0, 2.0, 3.0, 4.0), names, labels).tolist() == [1, 2, 3, 4]
    assert class_weights({"c": 5.0}, names, labels).tolist() == [1, 1, 5, 1]
    with pytest.raises(DataError, match=r"^train.class_weights: there is no class 'cc'$"):
        class_weights({"cc": 5.0}, names, labels)
    feed = feed_of(labels.tolist())
    assert feed.batch(phase_of(BOTH, batch=2), 0, 0, CPU).class_weights_N is None
    weights = feed.batch(phase_of(BOTH, batch=2, class_weights="inverse"), 0, 0, CPU).class_weights_N
    assert weights is not None and weights.tolist() == pytest.approx([6 / 9, 2.0, 1.0, 1.0])


SPEC = """\
data: {kind: shapes, classes: 4, train: 48, val: 16, test: 16}
clip: {frames: 4, size: 16}
labels: {clean: 0.25}
train: {batch: 8%s}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1%s}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
distill:
  phases:
    joint: {losses: {ce: 1.0, kd: 1.0}%s}
control: ce
"""


def written(project: Path, train: str = "", teacher: str = "", phase: str = "") -> Path:
    path = project / "specs" / "labelled.yaml"
    path.write_text(SPEC % (train, teacher, phase), "utf-8")
    return path


def problem(path: Path) -> tuple[str, str, str]:
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    (one,) = caught.value.problems
    assert one.place is not None
    return one.message, f"{one.place.line}:{one.place.column}", one.hint


def test_settings_that_need_labels_are_refused_without_them(project: Path) -> None:
    path = written(project, ", labelled: 0.5", ", labels: all")
    text = path.read_text("utf-8").replace("clean: 0.25", "clean: 0").replace("control: ce\n", "")
    path.write_text(text.replace("{ce: 1.0, kd: 1.0}", "{kd: 1.0}, train: {balance: classes}"), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [(p.message, p.hint) for p in caught.value.problems] == [
        (
            "'balance' has no labels: labels.clean and labels.noisy are 0",
            "raise labels.clean, or remove balance",
        ),
        (
            "'balance' changes nothing: no loss of the phase 'joint' uses the given labels",
            "add ce, or remove balance",
        ),
    ]


def test_balance_beside_other_clips_needs_labelled(project: Path) -> None:
    message, place, hint = problem(written(project, ", balance: classes"))
    assert message == "'balance' needs 'labelled': the phase 'joint' draws labelled and other clips together"
    assert (place, hint) == ("9:5", "set train.labelled to the share of labelled clips, 1 for labelled clips alone")
    load_spec(written(project, ", balance: classes, labelled: 1.0"))


def test_class_weights_are_held_against_the_classes(project: Path) -> None:
    message, place, hint = problem(written(project, ", class_weights: {lefd: 2.0}"))
    assert message == "there is no class 'lefd'" and place.startswith("4:") and hint == "did you mean 'left'?"
    message, place, hint = problem(written(project, ", class_weights: [1.0, 2.0]"))
    assert message == "2 class weights for 4 classes" and hint.startswith("give one for each, in the order ")
    message, _, _ = problem(written(project, ", class_weights: often"))
    assert message.endswith("must be 'inverse'") or "inverse" in message


def test_a_phase_that_does_not_use_a_setting_says_so(project: Path) -> None:
    path = written(project, phase=", train: {labelled: 0.5}")
    text = path.read_text("utf-8")
    path.write_text(text.replace("{ce: 1.0, kd: 1.0}", "{ce: 1.0}"), "utf-8")
    assert problem(path)[0] == (
        "'labelled' changes nothing: the phase 'joint' has ce alone, so it draws labelled clips alone"
    )
    path.write_text(
        text.replace("{ce: 1.0, kd: 1.0}", "{kd: 1.0}").replace("labelled: 0.5", "class_weights: inverse"), "utf-8"
    )
    assert problem(path)[0] == "'class_weights' changes nothing: the phase 'joint' has no ce"


def test_every_loss_on_given_labels_takes_the_settings_of_ce(project: Path) -> None:
    """gce, sce and elr leave out clips without a label, as ce does."""
    text = written(project, phase=", train: {labelled: 0.5, balance: classes}").read_text("utf-8")
    for name in ("gce", "sce", "elr"):
        (project / "specs" / "mine.yaml").write_text(text.replace("{ce: 1.0, kd: 1.0}", f"{{{name}: 1.0, kd: 1.0}}"))
        work = compile_plan(load_spec("specs/mine.yaml")).stage("student").work
        assert isinstance(work, DistillWork)
        assert (work.phases[-1].train.labelled, work.phases[-1].train.balance) == (0.5, "classes")
        path = project / "specs" / "alone.yaml"
        path.write_text(text.replace("{ce: 1.0, kd: 1.0}", f"{{{name}: 1.0}}"), "utf-8")
        assert f"has {name} alone, so it draws labelled clips alone" in problem(path)[0]


def test_settings_that_a_training_does_not_use_stay_out_of_its_key(project: Path) -> None:
    plain, share = (
        compile_plan(load_spec(written(project))),
        compile_plan(load_spec(written(project, ", labelled: 0.5"))),
    )
    keys = {name: (plain.stage(name).key, share.stage(name).key) for name in ("teacher", "control-ce", "student")}
    assert keys["teacher"][0] == keys["teacher"][1] and keys["control-ce"][0] == keys["control-ce"][1]
    assert keys["student"][0] != keys["student"][1]


@pytest.mark.slow
def test_a_run_with_all_three_settings(stagedkd: Command, project: Path) -> None:
    written(project, ", labelled: 0.5, balance: classes, class_weights: inverse")
    done = stagedkd("run", "specs/labelled.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
