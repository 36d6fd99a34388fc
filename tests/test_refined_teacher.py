"""Refinement reaches the teacher; it is calibrated with a prior; and it says where out-of-fold may be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stagedkd import load_spec, run
from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import TeachWork
from stagedkd.report.collect import collect
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
    table = read_table(outcome.artifacts["refine-1"].file("refined.parquet"))
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
