"""A student that sees a part of the training clips: the draw, the plan, the batches and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd import load_spec, run
from stagedkd.data.subset import quotas, seen_clips
from stagedkd.errors import DataError, SpecError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.report.collect import collect
from stagedkd.spec.schema import Sees
from stagedkd.store.store import Store
from stagedkd.train.job import Job
from tests.conftest import TINY, Command


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_quotas_add_up_and_are_within_one_of_the_proportion(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(sizes)))
    shares = quotas(sizes, count)
    assert sum(shares) == count
    assert all(abs(q - count * s / sum(sizes)) < 1 and q <= s for q, s in zip(shares, sizes, strict=True))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_single_clips_are_drawn_in_the_proportions_of_the_given_labels(seed: int, count: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 4, 60)
    rows = seen_clips(labels, ["g"] * 60, count, seed, whole_groups=False)
    assert len(rows) == len(set(rows.tolist())) == count and (np.diff(rows) > 0).all()
    for label in np.unique(labels):
        assert abs((labels[rows] == label).sum() - count * (labels == label).sum() / 60) < 1
    assert np.array_equal(rows, seen_clips(labels, ["h"] * 60, count, seed, whole_groups=False))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 20))
def test_whole_groups_are_drawn(seed: int, count: int, groups: int) -> None:
    dice = np.random.default_rng(seed)
    labels, named = dice.integers(-1, 2, 60), [f"g{i}" for i in dice.integers(0, groups, 60)]
    rows = set(seen_clips(labels, named, count, seed, whole_groups=True).tolist())
    seen = {named[row] for row in rows}
    assert rows == {row for row in range(60) if named[row] in seen} and rows
    largest = max(named.count(name) for name in named)
    assert abs(len(rows) - count) <= 2 * largest


def test_another_seed_draws_other_clips() -> None:
    labels = np.arange(60) % 4
    draws = {tuple(seen_clips(labels, [""] * 60, 12, seed, whole_groups=False).tolist()) for seed in range(20)}
    assert len(draws) == 20


def test_count_and_fraction() -> None:
    assert Sees.model_validate(80).clips_of(800) == 80 and Sees(fraction=0.1).clips_of(808) == 81
    assert Sees(fraction=0.001).clips_of(10) == 1
    assert (Sees(count=80).title, Sees(fraction=0.125).title) == ("80", "12.5%")


def test_the_part_holds_for_student_control_and_assistants(project: Path) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml", ["student.sees=24"]))
    for name in ("assistant-1", "student", "control-ce"):
        work = plan.stage(name).work
        assert isinstance(work, (DistillWork, TeachWork)) and work.sees == Sees(count=24)
    before = compile_plan(load_spec("specs/tiny.yaml"))
    assert plan.stage("teacher").key == before.stage("teacher").key
    assert plan.stage("student").key != before.stage("student").key
    assert "the student sees 24 of the training clips, the teacher all of them" in plan.notes
    own = "cascade=[{arch: resnet3d, width: 6, blocks: [1, 1], epochs: 4, sees: {fraction: 1.0}}]"
    work = compile_plan(load_spec("specs/tiny.yaml", ["student.sees=24", own])).stage("assistant-1").work
    assert isinstance(work, DistillWork) and work.sees == Sees(fraction=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("49", "the network sees 49 clips, but there are 48 training clips"),
        ("{}", "give count or fraction, one of them: for example 80, or {fraction: 0.1}"),
        ("{count: 3, fraction: 0.5}", "give count or fraction, one of them: for example 80, or {fraction: 0.1}"),
        ("0", "'student.sees' must be at least 1, not 0"),
    ],
)
def test_parts_that_cannot_be(project: Path, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", [f"student.sees={value}"])
    assert message in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["teacher.sees=24"], "'teacher.sees' must be same or others"),
        (["teacher.sees=same"], "sees: same is about the student's part of the clips, but the student sees all"),
        (
            ["teacher.sees=others", "student.sees=48"],
            "the student sees all training clips, so none are left for the teacher",
        ),
        (["co_teachers=[{arch: resnet3d, width: 4, epochs: 1, sees: others}]"], "sees: others is about the student's"),
    ],
)
def test_parts_that_a_teacher_cannot_see(project: Path, sets: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", sets)
    assert message in caught.value.problems[0].message and "sees" in str(caught.value)


def test_a_teacher_of_the_same_or_of_other_clips_has_keys_of_its_own(project: Path) -> None:
    sets = {None: [], "same": ["teacher.sees=same"], "others": ["teacher.sees=others"]}
    plans = {
        sees: compile_plan(load_spec("specs/tiny.yaml", ["student.sees=24", *more])) for sees, more in sets.items()
    }
    keys = {plan.stage("teacher").key for plan in plans.values()}
    assert len(keys) == 3 and plans[None].stage("control-ce").key == plans["others"].stage("control-ce").key
    assert "the student sees 24 of the training clips, the teacher the same ones" in plans["same"].notes
    assert "the student sees 24 of the training clips, the teacher all others" in plans["others"].notes


@pytest.mark.slow
def test_a_part_without_labels_is_refused(project: Path) -> None:
    text = TINY.replace(
        "labels: {clean: 0.5, noisy: 0.25, noise: {kind: symmetric, rate: 0.5}}", "labels: {clean: 0.1}"
    )
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        run(load_spec("specs/tiny.yaml", ["student.sees=1", "cascade=[]", "teacher.epochs=1"]))
    assert caught.value.message == "none of the 1 training clips that the network sees has a label"
    assert caught.value.hint == "raise sees or labels.clean, or draw another part by labels.seed"


@pytest.mark.slow
def test_hop_and_control_see_the_same_part(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagedkd.stages import distill, teach

    jobs: dict[str, Job] = {}
    for stage in (distill, teach):
        fit = stage.fit

        def training(job: Job, fit: object = fit) -> object:
            jobs[job.execution.log.__class__.__name__ + str(len(jobs))] = job
            return fit(job)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(stage, "fit", training)
    outcome = run(load_spec("specs/tiny.yaml", ["student.sees=20", "cascade=[]", "teacher.epochs=1"]))
    teacher, student, control = jobs.values()
    assert len(teacher.feed.clip_ids) == 48 and len(student.feed.clip_ids) == 20
    assert np.array_equal(student.feed.clip_ids, control.feed.clip_ids)
    metrics = outcome.artifacts["student"].manifest.metrics
    assert (metrics["clips"], metrics["clips_of"]) == (20, 48)
    assert metrics["steps"] == outcome.artifacts["control-ce"].manifest.metrics["steps"] == 4 * 2  # ceil(20 / 16)
    results = collect(outcome.plan, Store(project / "store"))
    assert results.student.labels_used == f"{metrics['labelled_clips']} of 20; it sees 20 of 48 clips"
    assert results.teacher.labels_used == "48 of 48 (true)"


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["same", "others"])
def test_a_teacher_of_the_same_or_of_other_clips(project: Path, monkeypatch: pytest.MonkeyPatch, sees: str) -> None:
    from stagedkd.stages import distill, teach

    seen: list[set[int]] = []
    for stage in (distill, teach):
        fit = stage.fit

        def training(job: Job, fit: object = fit) -> object:
            seen.append(set(job.feed.clip_ids.tolist()))
            return fit(job)  # pyright: ignore[reportCallIssue]

        monkeypatch.setattr(stage, "fit", training)
    sets = ["student.sees=20", "cascade=[]", "control=null", "teacher.epochs=1", f"teacher.sees={sees}"]
    outcome = run(load_spec("specs/tiny.yaml", sets))
    teacher, student = seen
    assert len(student) == 20
    assert teacher == student if sees == "same" else len(teacher) == 28 and not teacher & student
    count = len(teacher)
    results = collect(outcome.plan, Store(project / "store"))
    assert results.teacher.labels_used == f"{count} of {count} (true); it sees {count} of 48 clips"


@pytest.mark.slow
def test_a_part_through_the_command_line(stagedkd: Command, project: Path) -> None:
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc", "--set", "student.sees={fraction: 0.5}")
    assert done.returncode == 0, done.stderr
    assert "24 of 48 clips" in done.stdout + done.stderr
