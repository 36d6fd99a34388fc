"""`stagedkd rehearse`: a few steps of every stage, in a store of its own, before the first stage trains."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from stagedkd.errors import TrainingError
from stagedkd.experiment.costs import Estimate, alike_stages, costs_of, guesses, keep_costs, wall_seconds
from stagedkd.experiment.rehearsal import Rehearser
from stagedkd.launch.protocol import error_as_json
from stagedkd.launch.ready_queue import WorkerLost
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plans
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.load import load_experiment
from stagedkd.stages.context import Silent, Stop
from stagedkd.store.store import Store
from stagedkd.train.rehearsal import PhaseTimes, Rehearsal
from tests.conftest import Command
from tests.tools import files_of


def plans_of(*overrides: str) -> Plans:
    return compile_experiment(load_experiment("specs/tiny.yaml", list(overrides)))


def test_a_phase_takes_its_first_epoch_once_and_the_later_steps_in_all_others() -> None:
    times = PhaseTimes(steps=10, epochs=5, passes=[[9.0, 0.4, 0.4], [0.6, 0.1, 0.1]])
    # 10 first steps of 0.4, 40 later ones of 0.1, and 0.5 beside the steps in each of 5 epochs
    assert times.seconds == pytest.approx(4.0 + 4.0 + 2.5)
    rehearsal = Rehearsal(times=3, phases={"train": times}, batches=[5.0, 0.2, 0.2], all_batches=7, checkpoint=11)
    facts = rehearsal.facts()
    assert facts["seconds"] == pytest.approx(3 * (10.5 + 7 * 0.2))
    assert facts["spent"] == pytest.approx(9.8 + 0.8 + 5.4) and facts["checkpoint"] == 11
    assert facts["steps"] == {"train": 0.1}


def test_further_passes_take_the_steps_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.4, 0.8, 1.2, 1.2, 1.3, 1.4, 1.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    rehearsal = Rehearsal()
    for _ in range(2):
        rehearsal.begin_pass("train", 100, 1)
        while not rehearsal.enough("train"):
            rehearsal.step("train")
    assert [len(row) for row in rehearsal.phases["train"].passes] == [3, 3]  # until a second has passed


def test_stages_that_differ_in_seeds_and_rates_alone_are_rehearsed_once(project: Path) -> None:
    with (project / "specs" / "tiny.yaml").open("a", encoding="utf-8") as stream:
        stream.write("grid: {seeds: 3, axes: {student.train.lr: [0.1, 0.2], student.width: [4, 5]}}\n")
    plans = plans_of()
    alike = alike_stages(plans, set(plans.unique))
    students = [key for key, stage in plans.unique.items() if stage.role == "student"]
    assert len(students) == 12 and len({alike[key].identity for key in students}) == 2


@pytest.mark.usefixtures("project")
def test_the_time_of_a_run_is_that_of_its_longest_path_if_there_are_enough_jobs() -> None:
    plans = plans_of("control=ce")
    each = {key: Estimate(1.0) for key in plans.unique}
    assert wall_seconds(plans, each, 1) == len(each)
    (plan,) = plans.cells.values()
    depth: dict[str, int] = {}
    for stage in plan.stages:
        depth[stage.name] = 1 + max((depth[name] for name in stage.needs.values()), default=0)
    assert wall_seconds(plans, each, 50) == max(depth.values())


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("fits", "hint"), [(3, "set train.batch: 2, which fits"), (0, "no batch fits: lower clip")])
def test_a_batch_that_is_too_large_is_halved_until_it_fits(tmp_path: Path, fits: int, hint: str) -> None:
    plans = plans_of("train.batch=8")
    (plan,) = plans.cells.values()
    folder = tmp_path / "run"
    for part in ("requests", "progress"):
        (folder / part).mkdir(parents=True)
    tried: list[int] = []

    def submit(name: str) -> Future[dict[str, Any]]:
        """A worker of which the system kills the first, and for which others find no memory."""
        request = json.loads((folder / "requests" / f"{name}.json").read_text("utf-8"))
        (stage,) = (each for each in request["stages"] if each["name"] == request["stage"])
        tried.append(stage["work"]["phase"]["train"]["batch"])
        future: Future[dict[str, Any]] = Future()
        if len(tried) == 1:
            future.set_exception(WorkerLost("its worker was ended by SIGKILL"))
        elif tried[-1] > fits:
            future.set_result({"error": error_as_json(TrainingError("stage teacher: out of memory at phase train"))})
        else:
            future.set_result({"ran": True, "seconds": 1.0})
        return future

    rehearser = Rehearser(plans, folder, Store(tmp_path / "store"), Runtime(), Silent(), Stop())
    error, short = rehearser.make(plan, plan.stage("teacher"), Runtime(root=str(tmp_path)), submit)
    assert error is not None and short and "SIGKILL" in error.message
    found = rehearser.too_large(plan, plan.stage("teacher"), Runtime(root=str(tmp_path)), submit, error)
    assert str(found.hint).startswith(hint) and tried == ([8, 4, 2] if fits else [8, 4, 2, 1])


@pytest.mark.slow
def test_a_rehearsal_leaves_nothing_and_changes_nothing(stagedkd: Command, project: Path) -> None:
    once = ("run", "specs/tiny.yaml", "--no-dvc", "--threads", "1")
    assert stagedkd(*once, "--store", "other").returncode == 0
    done = stagedkd("rehearse", "specs/tiny.yaml", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "the run will take about" in done.stdout and "student" in done.stdout
    kinds = {path.name.split("-")[0] for path in (project / "store").glob("[a-z]*-*")}
    assert kinds == {"prepare", "weaken"}
    assert not list((project / "store" / ".work").glob("*"))
    before = stagedkd(*once)
    assert before.returncode == 0, before.stderr
    assert files_of(project / "store") == files_of(project / "other")
    again = stagedkd("rehearse", "specs/tiny.yaml", "--threads", "1")
    assert "nothing to run: the store has every stage" in again.stdout


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_found_before_anything_trains(stagedkd: Command, project: Path) -> None:
    (project / "own.py").write_text("def loss(student, teacher):\n    return student.sum() * float('nan')\n", "utf-8")
    done = stagedkd("rehearse", "specs/tiny.yaml", "--set", "distill.phases.joint.losses.file={path: own.py}")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1 and "Traceback" not in text
    assert "stage assistant-1: loss 'file' is nan at phase joint, epoch 1, step 1" in text
    assert not list((project / "store").glob("teach-*")) and not list((project / "store" / ".work").glob("*"))


@pytest.mark.slow
def test_a_long_run_is_rehearsed_first(stagedkd: Command, project: Path) -> None:
    (project / "own.py").write_text("def loss(student, teacher):\n    return student.sum() * float('nan')\n", "utf-8")
    long = ("--set", "teacher.epochs=100000", "--set", "distill.phases.joint.losses.file={path: own.py}")
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc", "--threads", "1", *long)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1 and "so it is rehearsed first" in text
    assert "stage assistant-1: loss 'file' is nan" in text  # after some seconds, not after 100,000 epochs
    assert not list((project / "store").glob("teach-*"))


@pytest.mark.usefixtures("project")
def test_a_rough_guess_grows_with_epochs_and_falls_with_threads() -> None:
    guessed: list[float] = []
    for overrides, threads in (((), 1), (("teacher.epochs=300",), 1), (("teacher.epochs=300",), 2)):
        plans = plans_of(*overrides)
        found = guesses(plans, plans.unique, Runtime(device="cpu", threads=threads))
        guessed.append(sum(each.seconds for each in found.values()))
    assert guessed[1] > 10 * guessed[0] > 0 and guessed[2] == guessed[1] / 2
    assert guesses(plans_of(), [], Runtime()) == {}


@pytest.mark.usefixtures("project")
def test_a_rough_guess_counts_the_clips_that_a_network_sees() -> None:
    def guessed(*overrides: str) -> dict[str, float]:
        plans = plans_of("cascade=[]", *overrides)
        found = guesses(plans, plans.unique, Runtime(device="cpu", threads=1))
        return {plans.unique[key].name: each.seconds for key, each in found.items()}

    whole, part = guessed(), guessed("student.sees=12")  # of 48
    assert part == pytest.approx({name: s / (1 if name == "teacher" else 4) for name, s in whole.items()})
    for sees, share in (("same", 1 / 4), ("others", 3 / 4)):
        teacher = guessed("student.sees=12", f"teacher.sees={sees}")["teacher"]
        assert teacher == pytest.approx(share * whole["teacher"])


def test_what_was_rehearsed_serves_alike_stages_on_the_same_machine(project: Path) -> None:
    plans, runtime = plans_of(), Runtime(device="cpu", threads=1, root=str(project))
    assert costs_of(plans, plans.unique, runtime).guessed
    keep_costs(plans, {key: Estimate(2.0, memory={"resident": 10**9}, disk=5) for key in plans.unique}, runtime)
    costs = costs_of(plans, plans.unique, runtime)
    assert not costs.guessed and costs.seconds == 2.0 * len(plans.unique) and costs.disk == 5 * len(plans.unique)
    assert costs.text == "the run will take about 20 s, 1.0 GB of memory and 50 bytes of disk, as rehearsed"
    other = plans_of("teacher.seed=5", "train.lr=0.1")
    assert costs_of(other, other.unique, runtime).seconds == costs.seconds
    longer = plans_of("teacher.epochs=30")
    assert costs_of(longer, longer.unique, runtime).guessed
    assert costs_of(plans, plans.unique, runtime.model_copy(update={"threads": 2})).guessed
    for path in (project / "cache" / "rehearsed").iterdir():
        path.write_text("{", "utf-8")  # broken ones count as missing
    assert costs_of(plans, plans.unique, runtime).guessed


@pytest.mark.slow
def test_plan_shows_what_a_run_will_take(stagedkd: Command) -> None:
    guess = stagedkd("plan", "specs/tiny.yaml", "--cost")
    assert guess.returncode == 0 and "guessed from FLOPs" in guess.stdout, guess.stderr
    assert stagedkd("rehearse", "specs/tiny.yaml").returncode == 0
    text = stagedkd("plan", "specs/tiny.yaml", "--cost").stdout
    assert "as rehearsed" in text and "grow.1 0." in text
    cost = json.loads(stagedkd("plan", "specs/tiny.yaml", "--cost", "--json").stdout)["cost"]
    assert cost["seconds"] > 0 and not cost["guessed"] and len(cost["stages"]) > 6
