"""Refinement reaches the teacher; it is calibrated with a prior; and it says where out-of-fold may be broken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stagedkd import load_spec, run
from stagedkd.data import refine as rules
from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import TeachWork
from stagedkd.report.collect import collect
from stagedkd.report.results import Refinement
from stagedkd.spec.rules import warnings
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Store
from stagedkd.train.job import Job
from tests.conftest import TINY, Command

REFINED = (
    TINY.replace("labels: all, epochs: 3", "labels: refined, epochs: 2")
    .replace("cascade: [0.5]", "cascade: []")
    .replace("control: ce", "refine: {kind: noise_model, rounds: 2, folds: 2, epochs: 1}")
    .replace("labels: {clean: 0.5, noisy: 0.25", "labels: {clean: 0.3, noisy: 0.4")
)


def written(project: Path, text: str = REFINED) -> Path:
    path = project / "specs" / "tiny.yaml"
    path.write_text(text, "utf-8")
    return path


def problem(path: Path, *overrides: str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        load_spec(path, list(overrides))
    (one,) = caught.value.problems
    return one.message, one.hint


def test_the_teacher_comes_after_the_last_round(project: Path) -> None:
    plan = compile_plan(load_spec(written(project)))
    assert [s.name for s in plan.stages][:6] == ["data", "labels", "refine-1", "refine-2", "teacher", "student"]
    assert dict(plan.stage("teacher").needs) == {"data": "data", "labels": "labels", "refined": "refine-2"}
    work = plan.stage("teacher").work
    assert isinstance(work, TeachWork) and work.labels == "refined" and work.phase is not None
    assert set(work.phase.losses.named()) == {"pseudo"}
    assert "the teacher is trained on refined labels: clips that refine-2 accepts, and the clean ones" in plan.notes
    hard = compile_plan(load_spec(written(project), ["refine.targets=hard"])).stage("teacher").work
    assert isinstance(hard, TeachWork) and hard.phase is not None and set(hard.phase.losses.named()) == {"ce"}


def test_the_rounds_do_not_need_the_teacher(project: Path) -> None:
    """Their own trainees have its architecture, so their keys are those of a spec whose teacher has weak labels."""
    refined = compile_plan(load_spec(written(project)))
    losses = "distill.phases.joint.losses.pseudo=1.0"
    same = compile_plan(load_spec(written(project), ["teacher.labels=same", losses]))
    assert all(refined.stage(n).key == same.stage(n).key for n in ("refine-1", "refine-2"))
    assert refined.stage("teacher").key != same.stage("teacher").key
    by_method = compile_plan(load_spec(written(project), ["teacher.labels=same", "distill.teacher.labels=refined"]))
    assert by_method.stage("teacher").key == refined.stage("teacher").key


def test_what_a_refined_teacher_needs(project: Path) -> None:
    assert problem(written(project, REFINED[: REFINED.index("refine: {kind")])) == (
        "a teacher on refined labels needs refine",
        "add refine: {kind: noise_model}, or set labels: same",
    )
    assert problem(written(project), "train.class_weights=inverse") == (
        "class_weights weigh ce alone, and a teacher on soft refined labels has none",
        "set refine.targets: hard, or remove class_weights",
    )
    load_spec(written(project), ["train.class_weights=inverse", "refine.targets=hard"])
    path = written(project)
    (project / "w.safetensors").write_bytes(b"")
    assert problem(path, "teacher.epochs=0", "teacher.weights=w.safetensors") == (
        "a teacher of 0 epochs is not trained on any labels, so not on refined ones",
        "raise teacher.epochs, or set labels: same",
    )
    assert problem(written(project), "teacher.labels=same") == (
        "no phase uses the refined labels",
        "add the loss pseudo, set teacher.labels: refined, or remove refine",
    )


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_the_teacher_sees_accepted_clips_alone(project: Path, monkeypatch: pytest.MonkeyPatch, targets: str) -> None:
    from stagedkd.stages import teach as stage

    jobs: list[Job] = []
    fit = stage.fit

    def training_of(job: Job) -> object:
        jobs.append(job)
        return fit(job)

    monkeypatch.setattr(stage, "fit", training_of)
    spec = load_spec(written(project), [f"refine.targets={targets}", "refine.accept=0.3", "refine.rounds=1"])
    outcome = run(spec)
    table = read_table(outcome.artifacts["refine-1"].read("refined.parquet"))
    accepted = np.array(table["accepted"])
    (job,) = jobs
    rows = {row for step in range(40) for row in job.feed.pick(job.phases[0], 0, step).rows.tolist()}
    assert rows == set(np.flatnonzero(accepted).tolist()) and 0 < accepted.sum() < len(accepted)
    batch = job.feed.batch(job.phases[0], 0, 0, job.execution.device)
    assert batch.posterior_BN is not None and batch.rows_B is not None
    expected = np.array(table["posterior"], np.float32)[batch.rows_B.numpy()]
    assert np.array_equal(batch.posterior_BN.numpy(), expected)
    assert batch.labels_B.tolist() == expected.argmax(1).tolist()
    metrics = outcome.artifacts["teacher"].manifest.metrics
    assert metrics["labels"] == "refined" and metrics["labelled_clips"] == int(accepted.sum())
    results = collect(outcome.plan, Store(project / "store"))
    assert results.teacher.labels_used == f"{accepted.sum()} of {len(accepted)} (refined)"


@pytest.mark.slow
def test_a_refined_teacher_through_the_command_line(stagedkd: Command, project: Path) -> None:
    written(project)
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
    assert "(refined)" in done.stdout + done.stderr


def answers(seed: int, n: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated predictions of n clips, (n, N) log-probabilities, and true classes drawn from them."""
    dice = np.random.default_rng(seed)
    logits = 3 * dice.standard_normal((n, classes))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_p, np.array([dice.choice(classes, p=np.exp(row)) for row in log_p])


def objective(log_p: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The posterior of a temperature, written from its formula: n * NLL + (log T)^2 / (2 * 0.5^2)."""
    scaled = log_p / temperature
    log_q = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return float(-log_q[np.arange(len(labels)), labels].sum() + np.log(temperature) ** 2 / (2 * 0.25))


def test_four_clean_clips_do_not_calibrate_to_the_bound() -> None:
    """Four clips that are all predicted right gave 0.05 without the prior."""
    log_p = np.log(np.full((4, 4), 0.1) + 0.6 * np.eye(4))
    found = rules.calibrate(log_p, np.arange(4))
    assert 0.4 < found < 1 and rules.bound_hit(found) is None
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    best = grid[int(np.argmin([objective(log_p, np.arange(4), t) for t in grid]))]
    assert found == pytest.approx(best, rel=2e-3)
    wrong = rules.calibrate(log_p, (np.arange(4) + 1) % 4)
    assert 1 < wrong < 20 and rules.bound_hit(wrong) is None


@pytest.mark.parametrize("temperature", [0.4, 1.0, 5.0])
def test_with_thousands_of_clips_the_prior_vanishes(temperature: float) -> None:
    log_p, labels = answers(0, 8000)
    grid = np.exp(np.linspace(np.log(0.1), np.log(15), 1001))
    prior = [np.log(t) ** 2 / (2 * 0.25) for t in grid]
    nll = [objective(log_p * temperature, labels, t) - p for t, p in zip(grid, prior, strict=True)]
    likeliest = grid[int(np.argmin(nll))]
    assert rules.calibrate(log_p * temperature, labels) == pytest.approx(likeliest, rel=0.01)
    assert likeliest == pytest.approx(temperature, rel=0.06)


def test_a_bound_is_told() -> None:
    assert [rules.bound_hit(t) for t in (0.05, 0.0502, 0.06, 1.0, 19.9, 20.0)] == [0.05, 0.05, None, None, 20.0, 20.0]
    fields = {f.name: None for f in dataclasses.fields(Refinement)}
    given_ = fields | {"name": "refine-1", "temperatures": (0.05, 0.83), "calibrated_on": 4}
    assert Refinement(**given_).notes == (  # pyright: ignore[reportArgumentType]
        "refine-1 is calibrated on 4 clean clips only: a prior draws its temperature towards 1; it is 0.05 and 0.83",
        "refine-1: a temperature is at its bound 0.05, so its posteriors may be miscalibrated",
    )
    many = fields | {"name": "refine-1", "temperatures": (0.83,), "calibrated_on": 400}
    assert Refinement(**many).notes == ()  # pyright: ignore[reportArgumentType]


def test_networks_that_start_from_a_file_may_break_out_of_fold(project: Path) -> None:
    path = written(project)
    spec = load_spec(path, ["refine.by=both", "student.weights=w.safetensors"])
    message = (
        "refine trains the student out of fold, but it starts from w.safetensors: if these weights were made with "
        "training clips, its predictions of them are not out of fold"
    )
    (warning,) = (p for p in warnings(spec) if "out of fold" in p.message)
    assert warning == (
        message,
        ("student", "weights"),
        "start from weights that never saw these clips, or refine by a network without weights",
    )
    assert message in compile_plan(spec).notes  # so plan, run and report say it
    by_teacher = load_spec(path, ["student.weights=w.safetensors"])
    assert not [p for p in warnings(by_teacher) if "out of fold" in p.message]


def test_check_says_that_out_of_fold_may_be_broken(stagedkd: Command, project: Path) -> None:
    written(project)
    done = stagedkd("check", "specs/tiny.yaml", "--set", "teacher.weights=w.safetensors")
    assert "refine trains the teacher out of fold, but it starts from w.safetensors" in done.stdout + done.stderr
