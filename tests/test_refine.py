"""Refined labels: calibration, noise model, rules, acceptance, when to stop; then the stage itself, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd import load_spec, run
from stagedkd.data import refine as rules
from stagedkd.errors import DataError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import RefineWork
from stagedkd.spec.schema import Refine
from stagedkd.stages.refine import KEPT, Clips, _outcome
from stagedkd.stages.tables import read_table
from stagedkd.train.evaluate import expected_calibration_error
from tests.conftest import TINY

RNG = np.random.default_rng


def world(seed: int, n: int = 4000, classes: int = 5, rate: float = 0.4, sharp: float = 2.0) -> tuple[Any, ...]:
    """Clips with a true class, a calibrated prediction of it (Dirichlet scores sampled so that p is the posterior), and
    given labels: a fifth clean, the rest through symmetric noise."""
    dice = RNG(seed)
    logits = sharp * dice.standard_normal((n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = np.array([dice.choice(classes, p=row) for row in p])
    clean = np.arange(n) % 5 == 0
    wrong = (true + dice.integers(1, classes, n)) % classes
    given_ = np.where(clean | (dice.random(n) >= rate), true, wrong)
    return p, true, given_.astype(np.int64), clean


def test_calibration_finds_the_temperature_back() -> None:
    p, true, _, _ = world(0)
    for temperature in (0.3, 1.0, 4.0):
        assert rules.calibrate(np.log(p) * temperature, true) == pytest.approx(temperature, rel=0.1)
    hot = rules.tempered(np.log(p), 2.0)
    raised = p**0.5
    assert np.allclose(hot, raised / raised.sum(1, keepdims=True))


def test_the_noise_matrix_is_found_back() -> None:
    p, true, given_, clean = world(1, n=20_000)
    expected = np.full((5, 5), 0.1) + 0.5 * np.eye(5)
    found = rules.noise_matrix(p, given_, clean, ~clean)
    assert np.allclose(found.sum(1), 1) and np.abs(found - expected).max() < 0.05
    swapped = np.where(~clean & (true == 2) & (RNG(0).random(len(true)) < 0.5), 3, true).astype(np.int64)
    found = rules.noise_matrix(p, swapped, clean, ~clean)
    assert found[2, 3] == pytest.approx(0.5, abs=0.1) and found[2, 2] == pytest.approx(0.5, abs=0.1)
    assert min(found[c, c] for c in (0, 1, 3, 4)) > 0.9


def test_few_clips_leave_symmetric_noise_of_the_right_rate() -> None:
    p, _, given_, clean = world(2, n=100, sharp=3.0)
    found = rules.noise_matrix(p, given_, clean, ~clean)
    off = found[~np.eye(5, dtype=bool)]
    assert np.allclose(found.sum(1), 1) and np.diag(found).mean() == pytest.approx(0.6, abs=0.2) and off.max() < 0.35


@pytest.mark.parametrize("align", [0.0, 0.7])
def test_posteriors_by_their_formula(align: float) -> None:
    p, _, given_, clean = world(3, n=50)
    given_[10:20] = -1
    noise, prior = rules.noise_matrix(p, given_, clean & (given_ >= 0), ~clean & (given_ >= 0)), np.full(5, 0.2)
    found = rules.posteriors(p, given_, noise, prior, align)
    for i in range(50):
        q = [
            p[i, c] * (noise[c, given_[i]] if given_[i] >= 0 else 1) * ((0.2 + 1e-6) / (p[:, c].mean() + 1e-6)) ** align
            for c in range(5)
        ]
        assert np.allclose(found[i], np.array(q) / sum(q))


def test_the_noise_model_mends_and_the_moving_average_cannot() -> None:
    """The EMA trap: one-hot labels at a decay of a half and more never flip in a first round."""
    p, true, given_, clean = world(4, sharp=3.0)
    before = rules.first_labels(given_, 5)
    noisy = ~clean
    right = (given_ == true)[noisy].mean()
    after = rules.next_labels(Refine(kind="noise_model"), [p], given_, clean, before)
    assert (after.label == true)[noisy].mean() > right + 0.1
    assert (after.label[clean] == given_[clean]).all() and after.accepted[clean].all()
    assert (after.label == true)[noisy & after.accepted].mean() > 0.9
    for decay in (0.5, 0.7, 0.99):
        same = rules.next_labels(Refine(kind="ema", decay=decay), [p], given_, clean, before)
        assert (same.label == given_).mean() > 0.999 and rules.flips(given_, same.label) < 0.001
    moved = rules.next_labels(Refine(kind="ema", decay=0.3), [p], given_, clean, before)
    assert rules.flips(given_, moved.label) > 0.1


def test_argmax_without_the_noise_model_is_worse_than_with_it() -> None:
    p, true, given_, clean = world(5, sharp=1.5)
    noise = rules.noise_matrix(p, given_, clean, ~clean)
    q = rules.posteriors(p, given_, noise, np.full(5, 0.2), 0.0)
    noisy = ~clean
    assert (q.argmax(1) == true)[noisy].mean() > max(
        (p.argmax(1) == true)[noisy].mean(), (given_ == true)[noisy].mean()
    )


def test_acceptance_fixed_and_flexmatch() -> None:
    q = np.array([[0.95, 0.05], [0.96, 0.04], [0.97, 0.03], [0.3, 0.7], [0.08, 0.92], [0.5, 0.5]])
    assert rules.reaches(q, 0.9, "fixed").tolist() == [True, True, True, False, True, False]
    share = 1 / 3  # of the first class, three clips reach 0.9; of the second, one
    limit = 0.9 * share / (2 - share)
    assert limit < 0.7
    assert rules.reaches(q, 0.9, "flexmatch").tolist() == [True, True, True, True, True, False]
    assert not rules.reaches(q, 0.99, "flexmatch").any()


def test_unlabelled_clips_are_accepted_by_posterior_alone() -> None:
    p, true, given_, clean = world(6, sharp=4.0)
    given_[1::2] = -1
    clean = clean & (given_ >= 0)
    after = rules.next_labels(Refine(kind="noise_model"), [p], given_, clean, rules.first_labels(given_, 5))
    none = given_ < 0
    assert (after.label[none & ~after.accepted] == -1).all() and after.accepted[none].mean() > 0.2
    assert (after.accepted[none] == (p[none].max(1) >= 0.9)).all()
    assert (after.label == true)[none & after.accepted].mean() > 0.9


def test_two_networks_complement_each_other() -> None:
    """The surer one counts more; agreement accepts what the threshold would not."""
    one, two = np.array([[0.99, 0.01], [0.5, 0.5]]), np.array([[0.4, 0.6], [0.1, 0.9]])
    h = lambda p: -(p * np.log(p)).sum(1)  # noqa: E731
    w = (h(two) / (h(one) + h(two)))[:, None]
    assert np.allclose(rules.mixture(one, two), w * one + (1 - w) * two)
    p, true, given_, clean = world(7)
    rule = Refine(kind="noise_model", accept=0.999)
    before = rules.first_labels(given_, 5)
    alone, both = (rules.next_labels(rule, many, given_, clean, before) for many in ([p], [p, p]))
    assert both.accepted.mean() > alone.accepted.mean() and both.accepted.all()
    assert (both.label == true).mean() == pytest.approx((alone.label == true).mean(), abs=0.02)


def test_hard_targets_are_the_classes_of_the_soft_ones() -> None:
    p, _, given_, clean = world(8, n=200)
    before = rules.first_labels(given_, 5)
    soft, hard = (
        rules.next_labels(Refine(kind="noise_model", targets=t), [p], given_, clean, before) for t in ("soft", "hard")
    )
    assert (hard.posterior == np.eye(5)[soft.posterior.argmax(1)]).all() and (hard.accepted == soft.accepted).all()


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 40))
def test_folds_keep_groups_together_and_are_even(seed: int, folds: int, groups: int) -> None:
    dice = RNG(seed)
    named = [f"g{i}" for i in dice.integers(0, groups, 120)]
    labels = dice.integers(-1, 4, 120)
    found = rules.deal_folds(named, labels, folds, seed)
    for group in set(named):
        assert len({int(f) for f, name in zip(found, named, strict=True) if name == group}) == 1
    assert set(found.tolist()) <= set(range(folds))
    if groups == 40:
        alone = rules.deal_folds([str(i) for i in range(120)], labels, folds, seed)
        assert max(np.bincount(alone, minlength=folds)) - min(np.bincount(alone, minlength=folds)) <= 1


def _clips(given_: Any, clean: Any, classes: int = 5) -> Clips:
    origin = ["clean" if c else "noisy" for c in clean]
    return Clips(
        np.arange(len(given_)), [str(i) for i in range(len(given_))], given_, origin, [f"c{i}" for i in range(classes)]
    )


def test_when_a_round_is_dropped() -> None:
    """The rule fires for each of its reasons, and for none where all is well."""
    p, _, given_, clean = world(9, sharp=3.0)
    clips, before = _clips(given_, clean), rules.first_labels(given_, 5)
    made = rules.next_labels(Refine(kind="noise_model"), [p], given_, clean, before)
    count = int(clean.sum())
    facts = {"held_out": 0.8, "nll": 0.5, "ece": 0.05}
    good = int(0.8 * count)
    assert _outcome(clips, before, made, facts, {}, good) == KEPT
    assert _outcome(clips, before, made, facts, {"nll": 0.6, "ece": 0.05}, good) == KEPT
    worse = _outcome(clips, before, made, facts, {"nll": 0.4, "ece": 0.05}, good)
    assert worse == "rolled back: held-out NLL rose from 0.4000 to 0.5000"
    assert _outcome(clips, before, made, facts, {"nll": 0.6, "ece": 0.02}, good).startswith("rolled back: held-out ECE")
    assert _outcome(clips, before, made, facts, {}, int(0.21 * count)).startswith("skipped: out of fold 80.0%")
    assert _outcome(clips, before, before, facts, {}, good) == "last: 0.00% of the labels changed"
    flood = rules.Labels(np.where(clean, given_, 2), made.posterior, made.accepted)
    assert _outcome(clips, before, flood, facts, {}, good).startswith(
        "rolled back: the share of c0, c1, c2, c3, c4 moved"
    )


def test_what_a_round_did_is_told_by_the_hidden_truth() -> None:
    before = np.array([0, 1, 1, -1, 2])
    after = rules.Labels(
        np.array([0, 0, 2, 2, 2]), np.eye(3)[[0, 0, 2, 2, 2]], np.array([True, True, True, True, False])
    )
    true = np.array([0, 0, 1, 2, 2])
    found = rules.refinement_metrics(before, after, true, np.ones(5, bool), ["a", "b", "c"])
    assert found == {
        "accuracy_before": 0.75,
        "accuracy_after": 0.75,
        "coverage": 0.8,
        "precision": 0.75,
        "wrong_to_right": 1,
        "right_to_wrong": 1,
        "recall": {"a": 1.0, "b": 0.0, "c": 1.0},
    }


def test_ece_of_perfect_and_of_boastful_predictions() -> None:
    confidence = np.full(1000, 0.9, np.float32)
    right = np.arange(1000) % 10 != 0
    assert expected_calibration_error(confidence, right) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(confidence, np.arange(1000) % 2 == 0) == pytest.approx(0.4, abs=1e-6)


REFINED = (
    TINY.replace("labels: all, epochs: 3", "epochs: 3")
    .replace("cascade: [0.5]", "cascade: []")
    .replace("control: ce", "refine: {kind: noise_model, rounds: 2, folds: 2}")
    .replace("kd: 0.9, sp: 10", "kd: 0.9, pseudo: {weight: 0.5, warmup_epochs: 1}")
    .replace("labels: {clean: 0.5, noisy: 0.25", "labels: {clean: 0.3, noisy: 0.4")
)


def test_refinement_has_a_rate_of_its_own(project: Path) -> None:
    """It changes the out-of-fold trainings, and no other; what it leaves out is that of the network."""
    (project / "specs" / "tiny.yaml").write_text(REFINED, "utf-8")
    student = ["refine.by=student", "student.train={lr: 7e-3, batch: 8}"]
    plain, own = (
        compile_plan(load_spec("specs/tiny.yaml", [*student, *more])) for more in ([], ["refine.train.lr=2e-2"])
    )
    work = own.stage("refine-1").work
    assert isinstance(work, RefineWork)
    (train,) = (phase.train for phase in work.trainings)
    assert (train.lr, train.batch) == (2e-2, 8)
    before, after = (plan.stage("student").work for plan in (plain, own))
    assert before == after and plain.stage("teacher").identity == own.stage("teacher").identity
    assert plain.stage("refine-1").identity != own.stage("refine-1").identity
    same = compile_plan(load_spec("specs/tiny.yaml", [*student, "refine.train.lr=7e-3"]))
    assert same.stage("refine-1").identity == plain.stage("refine-1").identity  # it says what holds anyway


@pytest.mark.slow
def test_a_round_is_an_artifact_with_the_provenance_of_every_label(project: Path) -> None:
    (project / "specs" / "tiny.yaml").write_text(REFINED, "utf-8")
    outcome = run(
        load_spec("specs/tiny.yaml", ["refine.by=both", "refine.rounds=1", "train.lr=3e-3", "teacher.epochs=12"])
    )
    artifact = outcome.artifacts["refine-1"]
    table = read_table(artifact.read("refined.parquet"))
    given_ = read_table(outcome.artifacts["labels"].read("labels.parquet"))
    assert table["clip"] == given_["clip"] and table["given"] == given_["label"] == table["old"]
    metrics = artifact.manifest.metrics
    assert metrics["round"] == 1 and len(metrics["temperatures"]) == 2 and metrics["train_flops"] > 0
    for origin, old, label, posterior, accepted, by in zip(
        *(table[c] for c in ("origin", "given", "label", "posterior", "accepted", "by")), strict=True
    ):
        if origin == "clean":
            assert label == old and accepted and by == "" and posterior[label] == 1
        if metrics["outcome"] == KEPT and origin == "noisy":
            assert by == "both" and sum(posterior) == pytest.approx(1, abs=1e-5) and label == int(np.argmax(posterior))
    assert "pseudo" in outcome.artifacts["student"].manifest.metrics["losses"]["joint"]


@pytest.mark.slow
def test_a_killed_round_goes_on_to_the_same_bits(project: Path) -> None:
    (project / "specs" / "tiny.yaml").write_text(REFINED, "utf-8")
    whole = run(load_spec("specs/tiny.yaml"))
    wanted = {name: dict(a.manifest.files) for name, a in whole.artifacts.items()}
    import shutil

    shutil.rmtree(project / "store")
    command = [sys.executable, "-m", "stagedkd.cli", "run", "specs/tiny.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not list(project.glob("store/.work/refine-*/*.npy")) and time.monotonic() < until:
        time.sleep(0.005)
        assert process.poll() is None, "it finished before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(project.glob("store/refine-*"))
    again = run(load_spec("specs/tiny.yaml"))
    assert {name: dict(a.manifest.files) for name, a in again.artifacts.items()} == wanted


@pytest.mark.slow
def test_rounds_after_the_last_one_pass_its_labels_on(project: Path) -> None:
    """Networks of one epoch know nothing: the first round is skipped, and says so; the second one trains nothing."""
    (project / "specs" / "tiny.yaml").write_text(REFINED, "utf-8")
    outcome = run(load_spec("specs/tiny.yaml", ["refine.epochs=1", "train.lr=1e-6"]))
    first, second = (outcome.artifacts[f"refine-{i}"] for i in (1, 2))
    assert first.manifest.metrics["outcome"].startswith("skipped: out of fold")
    assert second.manifest.metrics["outcome"] == "not run: round 1 ended it"
    assert second.manifest.metrics["train_flops"] == 0
    one, two = (read_table(a.read("refined.parquet")) for a in (first, second))
    assert one["label"] == two["label"] == one["given"] and one["by"] == [""] * len(one["by"])


@pytest.mark.slow
def test_refinement_without_clean_labels_says_what_to_do(project: Path) -> None:
    text = REFINED.replace("clean: 0.3, noisy: 0.4", "clean: 0.0, noisy: 0.4")
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    with pytest.raises(Exception, match=r"'refine' needs clean labels") as caught:
        run(load_spec("specs/tiny.yaml"))
    assert not isinstance(caught.value, DataError) and json.dumps(str(caught.value))


@pytest.mark.slow
def test_predictions_are_out_of_fold_and_rounds_train_on_the_labels_before(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network predicts a clip that it was trained on, and the second round's networks see the first one's labels."""
    from stagedkd.stages import refine as stage

    (project / "specs" / "tiny.yaml").write_text(REFINED, "utf-8")
    trained: list[tuple[set[int], dict[int, int]]] = []
    predicted: list[set[int]] = []
    fit, predict = stage.fit, stage.predict

    def training(job: Any) -> Any:
        clip_ids = job.feed.clip_ids.tolist()
        trained.append((set(clip_ids), dict(zip(clip_ids, job.feed.labels.tolist(), strict=True))))
        return fit(job)

    def predicting(network: Any, source: Any, clip_ids: Any, *rest: Any) -> Any:
        predicted.append(set(clip_ids.tolist()))
        return predict(network, source, clip_ids, *rest)

    monkeypatch.setattr(stage, "fit", training)
    monkeypatch.setattr(stage, "predict", predicting)
    monkeypatch.setattr(rules, "near_chance", lambda *_: False)  # so small a network knows little
    monkeypatch.setattr(rules, "shifted", lambda *_: [])
    outcome = run(
        load_spec("specs/tiny.yaml", ["refine.folds=3", "train.lr=3e-3", "teacher.epochs=12", "data.train=96"])
    )
    first = read_table(outcome.artifacts["refine-1"].read("refined.parquet"))
    assert outcome.artifacts["refine-1"].manifest.metrics["outcome"] == KEPT, "the case is built so that it is kept"
    assert len(trained) == 6 and set().union(*predicted[:3]) == set(first["clip"])
    for (seen, _), out in zip(trained, predicted, strict=True):
        assert not seen & out and seen | out == set(first["clip"])
    after = dict(zip(first["clip"], first["label"], strict=True))
    given_ = dict(zip(first["clip"], first["given"], strict=True))
    assert any(after[n] != given_[n] for n in after)
    for _, labels in trained[3:]:
        assert all(label == after[n] for n, label in labels.items())


def test_newly_labelled_clips_count_as_change() -> None:
    before, after = np.array([0, 1, -1, -1]), np.array([0, 1, 2, -1])
    assert rules.flips(before, after) == pytest.approx(1 / 3)
