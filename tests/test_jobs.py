"""`run --jobs n`: the ready-queue, and processes on this machine, some of which are killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stagedkd.errors import StagedkdError, TrainingError, UsageError
from stagedkd.launch.local import cpu_notes, jobs_for
from stagedkd.launch.protocol import error_as_json
from stagedkd.launch.ready_queue import Job, ReadyQueue, WorkerLost, missing_stages, run_folder
from stagedkd.launch.worker import WorkerRequest
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.cpus import AFFINITY, Cpus
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import Key
from stagedkd.plan.runtime import Runtime
from stagedkd.report.progress import RunProgress
from stagedkd.spec.load import load_experiment
from stagedkd.stages.context import Listener, Silent, Stop
from stagedkd.store.store import Store
from tests.test_cluster import (
    BASE,
    MARK,
    TORN,
    TORN_NET,
    ended,
    gone_after,
    linux,
    processes,
    slow,
    start,
    student_at_work,
)
from tests.tools import files_of

GRID = "extends: base.yaml\ncontrol: ce\ngrid: {seeds: 2, axes: {student: {w4: {}, w6: {width: 6}}}}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a grid of four cells, and one with a cell that diverges."""
    folder = tmp_path_factory.mktemp("jobs")
    for part in ("specs", "nets"):
        (folder / part).mkdir()
    (folder / "nets" / "torn.py").write_text(TORN_NET, "utf-8")
    for name, text in (("base", BASE), ("grid", GRID), ("torn", TORN)):
        (folder / "specs" / f"{name}.yaml").write_text(text, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1, checkpoint_seconds: 0}\n", "utf-8")
    return folder


def plans_of(place: Path, spec: str = "grid") -> Plans:
    return compile_experiment(load_experiment(place / "specs" / f"{spec}.yaml"))


def names(keys: list[Key], plans: Plans) -> list[str]:
    return [plans.unique[key].name for key in keys]


class Pool:
    """Workers that do nothing: `finish` ends a stage that was submitted. `running` is in the order of submission."""

    def __init__(self, place: Path, plans: Plans, tmp_path: Path, **options: Any) -> None:
        self.missing = missing_stages(plans, Store(tmp_path))
        self.running: dict[Key, Future[dict[str, Any]]] = {}
        self.given: list[WorkerRequest] = []
        self.stop, self.folder = Stop(), run_folder(Store(tmp_path), "jobs-1")
        request = partial(WorkerRequest.of, runtime=Runtime())
        listener = options.pop("listener", Silent())
        self.queue = ReadyQueue(self.missing, self._submit, self.folder, request, listener, self.stop, **options)

    def _submit(self, name: str) -> Future[dict[str, Any]]:
        request = WorkerRequest.read(self.folder / "requests" / f"{name}.json")
        self.given.append(request)
        future = self.running[request.graph.stage(request.stage).identity] = Future()
        return future

    def turn(self) -> list[Job]:
        """One turn of the queue; the jobs that run after it."""
        for job in self.missing.values():
            if job.future is not None:
                self.queue._poll(job)  # pyright: ignore[reportPrivateUsage]
        self.queue._fill()  # pyright: ignore[reportPrivateUsage]
        return [job for job in self.missing.values() if job.future is not None]

    def finish(self, job: Job, result: dict[str, Any] | BaseException | None = None) -> None:
        future = self.running[job.stage.identity]
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result or {"ran": True, "seconds": 0.0})


# The ready-queue.


@pytest.mark.parametrize("slots", [1, 2, 5, None])
def test_no_stage_is_given_twice_and_none_before_its_inputs(place: Path, tmp_path: Path, slots: int | None) -> None:
    plans = plans_of(place)
    pool = Pool(place, plans, tmp_path, slots=slots)
    done: set[Key] = set()
    while jobs := pool.turn():
        assert slots is None or len(jobs) <= slots
        for job in jobs:
            assert {above.identity for above in job.plan.inputs(job.stage).values()} <= done
        pool.finish(jobs[-1])
        done.add(jobs[-1].stage.identity)
    given = [request.graph.stage(request.stage).identity for request in pool.given]
    assert len(given) == len(set(given)) and set(given) == done == set(plans.unique)
    if slots == 1:
        assert given == list(plans.unique)  # the order of the plans, as in one process
    assert pool.queue.outcomes == dict.fromkeys(plans.unique, True)


def test_a_failed_stage_stops_what_needs_it_alone(place: Path, tmp_path: Path) -> None:
    plans = plans_of(place)
    pool, failed = Pool(place, plans, tmp_path, slots=2), None
    while jobs := pool.turn():
        if failed is None and jobs[0].stage.name == "student":
            failed = jobs[0]
            pool.finish(jobs[0], {"error": error_as_json(TrainingError("loss is nan")), "trace": "here"})
            continue
        pool.finish(jobs[0])
    assert failed is not None
    outcomes = pool.queue.outcomes
    needs_it = {
        stage.identity
        for plan in plans.cells.values()
        for stage in plan.stages
        if stage.identity != failed.stage.identity
        and any(above.identity == failed.stage.identity for above in plan.closure(stage))
    }
    assert needs_it and set(plans.unique) - set(outcomes) == needs_it
    assert [str(error) for error in outcomes.values() if isinstance(error, StagedkdError)] == ["loss is nan"]
    assert not pool.queue.keep_logs


def test_a_lost_worker_costs_its_stage(place: Path, tmp_path: Path) -> None:
    pool = Pool(place, plans_of(place), tmp_path, slots=2)
    for _ in range(2):  # data and labels
        pool.finish(pool.turn()[0])
    teacher, *_ = pool.turn()
    assert teacher.stage.name == "teacher"
    pool.finish(teacher, WorkerLost("its worker was ended by SIGKILL"))
    pool.turn()
    error = pool.queue.outcomes[teacher.stage.identity]
    assert isinstance(error, TrainingError) and error.message == "stage teacher: its worker was ended by SIGKILL"
    assert "the same command resumes from the last checkpoint" in error.hint and pool.queue.keep_logs


def test_stages_that_another_run_makes_come_last(place: Path, tmp_path: Path) -> None:
    pool = Pool(place, plans_of(place), tmp_path, slots=1)
    while (job := pool.turn()[0]).stage.name != "student":
        pool.finish(job)
    first = len(pool.given)
    assert not pool.given[-1].waits
    pool.finish(job, {"busy": True})
    while (other := pool.turn()[0]) is not job:
        pool.finish(other)
    assert pool.given[-1].waits and len(pool.given) - first > 5
    pool.finish(job)
    pool.turn()
    assert pool.queue.outcomes[job.stage.identity] is True


def test_after_a_stop_nothing_is_started(place: Path, tmp_path: Path) -> None:
    """A stage that has begun is awaited; one that waits for its worker is not."""
    pool = Pool(place, plans_of(place), tmp_path, slots=2)
    (job,) = pool.turn()
    pool.stop.number = signal.SIGTERM
    pool.queue.run()
    assert (pool.folder / "stop").read_text() == "15" and not pool.queue.outcomes and len(pool.given) == 1
    job.started = True
    pool.finish(job, {"error": error_as_json(StagedkdError("torn")), "trace": ""})
    pool.queue.run()
    assert len(pool.given) == 1


# How many at once.


def test_auto_fills_the_cpus_where_the_graph_has_room(place: Path) -> None:
    grid, one = plans_of(place), plans_of(place, "base")
    all_of_grid, all_of_one = list(grid.unique.values()), list(one.unique.values())

    def count(plans: Plans, missing: Any, cpus: int, **runtime: Any) -> int:
        return jobs_for(plans.cells.values(), missing, Runtime(device="cpu", **runtime), cpus)

    assert count(grid, all_of_grid, 8, threads=4) == 2 and count(grid, all_of_grid, 2, threads=1) == 2
    assert (
        count(grid, all_of_grid, 8) == 8 and count(grid, all_of_grid, 64) == 9
    )  # four hops, four controls, one evaluation
    assert count(grid, all_of_grid, 1) == 1 and count(grid, all_of_grid, 2, threads=2) == 1
    assert count(grid, all_of_grid, 2, threads=3) == 1
    assert count(grid, all_of_grid, 1, jobs=3) == 3 and count(grid, all_of_grid, 8, jobs=1) == 1
    assert count(one, all_of_one, 8) == 2  # the teacher's evaluation beside the student
    assert count(one, [one.cells[""].stage("evaluate-student")], 8, jobs=4) == 1 and count(one, [], 8) == 1
    chain = [stage for stage in all_of_one if stage.name != "evaluate-teacher"]
    assert count(one, chain, 8) == count(one, chain, 8, jobs=4) == 1
    assert count(grid, all_of_grid, 8, gpus=2) == 1
    with pytest.raises(UsageError, match="gpus: 2 divides each training among processes, so jobs must be 1"):
        count(grid, all_of_grid, 8, gpus=2, jobs=2)


def test_a_run_says_what_limits_its_threads_and_what_jobs_would_do(place: Path) -> None:
    grid, one = plans_of(place), plans_of(place, "base")

    def notes(plans: Plans, cpus: Cpus, **runtime: Any) -> list[str]:
        graphs, missing = plans.cells.values(), plans.unique.values()
        return list(cpu_notes(graphs, missing, Runtime(device="cpu", **runtime), cpus))

    (hint,) = notes(grid, Cpus(4, AFFINITY))
    assert hint == "--jobs 4 would make 4 stages at once, on 1 of 4 threads each, and give other last bits"
    assert notes(one, Cpus(4, AFFINITY)) == notes(grid, Cpus(4, AFFINITY), threads=2) == []
    (limit,) = notes(one, Cpus(1, "SLURM_CPUS_PER_TASK"))
    assert limit == "threads: 1, since SLURM_CPUS_PER_TASK is 1 (--threads sets another number)"
    assert notes(grid, Cpus(4, AFFINITY), jobs=4) == []


# What is shown.


def test_lines_of_several_stages_say_whose_they_are(place: Path) -> None:
    for terminal in (False, True):
        console = Console(width=200, file=io.StringIO(), color_system=None, force_terminal=terminal)
        show_two(place, progress := RunProgress(console, 1))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "[4/9] student: resuming (distill-" in text and "[4/9] student: done in 3.0 s" in text
        assert "note: [4/9] student: slow" in text and "[5/9] control-ce: failed: loss is nan" in text
        assert progress.progress.task_ids == []
        if not terminal:
            lines = [line for line in text.splitlines() if "clips/s" in line]
            assert [line.partition(":")[0] for line in lines] == ["[4/9] student", "[5/9] control-ce", "[4/9] student"]


def show_two(place: Path, progress: RunProgress) -> None:
    """Show two stages that run at once."""
    plan = next(iter(plans_of(place).cells.values()))
    student, control = plan.stage("student"), plan.stage("control-ce")
    step = {"losses": {"ce": 1.0}, "phase": "joint", "epochs": 2, "clips_per_s": 9.0, "seconds": 1.0}
    with progress:
        beside: list[Listener] = []
        for number, stage, state in ((4, student, "resumable"), (5, control, "miss")):
            beside.append(progress.beside(stage, f"[{number}/9] {stage.name}"))
            progress.stage(number, 9, stage, state)
        for which, epoch in ((0, 1), (1, 1), (0, 2), (1, 1)):
            beside[which].step({**step, "epoch": epoch, "done": 0.3 * epoch})
        beside[1].count("clips decoded", 1, 2)
        beside[0].note("slow")
        progress.failed(control, "loss is nan")
        progress.finished(student, 3.0)


# Real processes. 4 cells, 17 unique stages: 4 students, 4 controls, and what is evaluated.


@pytest.fixture(scope="module")
def reference(place: Path) -> dict[str, bytes]:
    """What the grid gives in one process."""
    code, errors = ended(start(place, "alone", "--jobs", "1"))
    assert code == 0, errors
    return files_of(place / "alone")


def require_whole(place: Path, store: str) -> Counter[str]:
    """Each stage is there and trained every epoch once; how often each went on after a stop."""
    resumed: Counter[str] = Counter()
    unique = plans_of(place).unique.values()
    for stage in unique:
        if stage.work.kind not in ("teach", "distill"):
            continue
        events = (place / store / stage.folder / "events.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in events]
        epochs = [(row["phase"], row["epoch"]) for row in rows if row["event"] == "epoch"]
        assert len(epochs) == len(set(epochs)) == stage.work.epochs_run
        resumed[stage.folder] = sum(row["event"] == "resumed" for row in rows)
    left = [path.name for path in (place / store / ".work").iterdir()]
    assert len(list((place / store).glob("*-*"))) == len(unique) and not left, left
    return resumed


def done_in(errors: str) -> Counter[str]:
    return Counter(re.findall(r"^\[(\d+)/\d+\] \S+: done in", errors, re.MULTILINE))


def at_once(errors: str) -> int:
    """The most stages that ran at the same time, by the lines of progress."""
    going = most = 0
    for what in re.findall(r"^ *\[\d+/\d+\] \S+: (running|done)", errors, re.MULTILINE):
        going += 1 if what == "running" else -1
        most = max(most, going)
    return most


@slow
def test_two_jobs_give_the_bits_of_one(place: Path, reference: dict[str, bytes]) -> None:
    code, errors = ended(start(place, "two", "--jobs", "2"))
    assert code == 0, errors
    assert files_of(place / "two") == reference
    assert not any(require_whole(place, "two").values())
    unique = plans_of(place).unique
    assert done_in(errors) == Counter(str(number) for number in range(1, len(unique) + 1)), errors
    running = [line for line in errors.splitlines() if re.search(r": running \(.*\); \d+ stages? left", line)]
    assert len(running) == len(unique) and "cell " not in errors
    assert at_once(errors) == 2, errors
    code, errors = ended(start(place, "two", "--jobs", "2"))
    assert code == 0 and "nothing to do" in errors


@slow
@linux
def test_a_killed_worker_costs_its_stage_and_the_same_command_resumes(place: Path, reference: dict[str, bytes]) -> None:
    process = start(place, "killed", "--jobs", "2")
    folder, pid = student_at_work(place / "killed", process)
    assert pid != process.pid
    os.kill(pid, signal.SIGKILL)
    code, errors = ended(process)
    assert code == 1 and "Traceback" not in errors, errors
    sentence = "stage student: its worker was ended by SIGKILL; perhaps memory was short, so try fewer --jobs"
    assert f"student: failed: {sentence}" in errors and "1 of 4 cells failed" in errors
    lost = [stage for stage in plans_of(place).unique.values() if not (place / "killed" / stage.folder).exists()]
    assert sorted(stage.name for stage in lost) == ["evaluate-student", "student"]  # the rest went on
    assert not processes(f"{place}/killed")
    (logs,) = (place / "killed" / ".work").glob("jobs-*")
    assert [path.name for path in logs.iterdir() if path.suffix == ".log"] == ["workers.log"]
    assert str(logs) in "".join(errors.split())  # a long path is wrapped

    code, errors = ended(start(place, "killed", "--jobs", "2"))
    assert code == 0 and "student: resuming" in errors, errors
    assert files_of(place / "killed") == reference and not logs.exists()
    clean = [sys.executable, "-m", "stagedkd.cli", "store", "gc", "--store", "killed", "--yes"]
    subprocess.run(clean, cwd=place, check=False, capture_output=True)
    resumed = {name: count for name, count in resumed_in(place, "killed").items() if count}
    assert resumed == {folder[: len("distill-") + 12]: 1}


def resumed_in(place: Path, store: str) -> dict[str, int]:
    events = (place / store).glob("*/events.jsonl")
    return {path.parent.name: path.read_text("utf-8").count('"resumed"') for path in events}


@slow
@linux
def test_ctrl_c_writes_checkpoints_and_the_same_command_resumes(place: Path, reference: dict[str, bytes]) -> None:
    process = start(place, "stopped", "--jobs", "2")
    student_at_work(place / "stopped", process)
    process.send_signal(signal.SIGINT)
    code, errors = ended(process)
    assert code == 130 and "Traceback" not in errors and "stopped by signal 2" in errors, errors
    assert re.search("checkpoint written|have written checkpoints", errors) and "the same command" in errors
    assert not processes(f"{place}/stopped")
    code, errors = ended(start(place, "stopped", "--jobs", "2"))
    assert code == 0 and "resuming" in errors, errors
    assert files_of(place / "stopped") == reference
    assert sum(require_whole(place, "stopped").values()) in (1, 2)


@slow
@linux
@pytest.mark.parametrize("how", ["second Ctrl-C", "kill -9"])
def test_no_worker_outlives_the_run(place: Path, how: str) -> None:
    store = how.replace(" ", "-")
    process = start(place, store, "--jobs", "2", "--set", "distill.phases.joint.epochs=4000")
    student_at_work(place / store, process)
    pids = processes(f"{place}/{store}")
    assert len(pids) == 3
    if how == "kill -9":
        process.kill()
    else:
        frozen = pids - {process.pid}
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)  # they do not answer the first one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    process.communicate()
    gone_after(pids, 10)


@slow
def test_a_cell_that_fails_stops_no_other(place: Path) -> None:
    ends = [ended(start(place, f"torn-{jobs}", "--jobs", str(jobs), spec="torn")) for jobs in (1, 2)]
    assert [code for code, _ in ends] == [1, 1], ends
    one, two = (errors[errors.index("error: ") :] for _, errors in ends)
    assert one == two and "1 of 3 cells failed" in one and "student=torn" in one
    assert files_of(place / "torn-1") == files_of(place / "torn-2")
    work = [sorted(path.name.partition(".")[0] for path in (place / f"torn-{n}/.work").iterdir()) for n in (1, 2)]
    assert work[0] == work[1]  # what the failed cell leaves on the disk


def test_jobs_and_parsl_do_not_go_together(place: Path) -> None:
    code, errors = ended(start(place, "both", "--engine", "parsl", "--jobs", "2"))
    assert code == 2 and "--jobs counts processes on this machine" in errors
    code, errors = ended(start(place, "both", "--jobs", "many"))
    assert code == 2 and "--jobs many" in errors, errors
    assert MARK not in errors
