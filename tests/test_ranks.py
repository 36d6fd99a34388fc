"""Trainings over several processes without any: what is refused, and the launcher with something else in the place of
torchrun."""

from __future__ import annotations

import signal
import stat
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stagedkd.errors import Interrupted, StagedkdError, TrainingError, UsageError
from stagedkd.experiment.reproduce import runtime_like_original
from stagedkd.experiment.run import run_stage
from stagedkd.launch import torchrun as ranks
from stagedkd.launch.protocol import error_as_json, error_from_json
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.lock import Lock
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_spec
from stagedkd.stages.context import Context, Silent, Stop
from stagedkd.stages.provenance import read_environments, write_environments
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Workspace
from tests.tools import Heard

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the place of torchrun is taken by a shell script")


@pytest.fixture
def context(project: Path) -> Context:
    """The student of the tiny spec, about to be trained by two."""
    plan = compile_plan(load_spec("specs/tiny.yaml"), Lock())
    stage = plan.stage("student")
    runtime = load_runtime(project, gpus=2, device="cpu")
    workspace = Workspace(project / "work/artifact/files", project / "work")
    workspace.files.mkdir(parents=True)
    return Context(
        plan=plan,
        stage=stage,
        inputs={},
        workspace=workspace,
        manifest=manifest_of(plan, stage),
        runtime=runtime,
        listener=Silent(),
        stop=Stop(),
    )


def instead(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have the launcher start a shell script: `$4` is `torchrun`, `$5` the folder of the ranks."""
    path = folder / "instead.sh"
    path.write_text("#!/bin/sh\n" + script, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(ranks.sys, "executable", str(path))


def ended(context: Context) -> StagedkdError:
    with pytest.raises(StagedkdError) as caught:
        ranks.work_in_ranks(context)
    return caught.value


def stopped_after(context: Context, seconds: float, number: int = signal.SIGTERM) -> None:
    threading.Timer(seconds, setattr, (context.stop, "number", int(number))).start()


@pytest.mark.parametrize("kept", [True, False])
def test_ranks_that_do_not_answer_a_stop_are_ended(
    context: Context, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """They are deaf to SIGTERM, too, and to the end of their stdin, as torchrun is while it looks for its host."""
    monkeypatch.setattr(ranks, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(ranks, "END_SECONDS", 0.2)
    scratch = context.workspace.scratch
    instead(monkeypatch, scratch, "trap '' TERM\nexec sleep 600\n")
    if kept:
        (scratch / "checkpoint.pt").write_bytes(b"")
    stopped_after(context, 0.3)
    began = time.monotonic()
    error = ended(context)
    assert 0.8 <= time.monotonic() - began < 30
    assert isinstance(error, Interrupted) and error.exit_code == 143
    assert (str(scratch / "checkpoint.pt") if kept else "there is no checkpoint yet") in error.message


def test_ranks_that_a_signal_ended_are_no_failure(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the signal reached all of them at once, before they could know it for a stop."""
    instead(monkeypatch, context.workspace.scratch, "while ! test -e work/ranks/stop; do sleep 0.02; done; exit 1\n")
    stopped_after(context, 0.1, signal.SIGINT)
    error = ended(context)
    assert isinstance(error, Interrupted) and error.exit_code == 130


def test_a_stop_names_a_checkpoint_only_where_there_is_one() -> None:
    """A run that waits or decodes has none. What another process wrote keeps its hint."""
    with pytest.raises(Interrupted) as waiting:
        Stop(number=signal.SIGINT).check()
    assert "checkpoint" not in waiting.value.hint and waiting.value.exit_code == 130
    for hint in (waiting.value.hint, "resume from the checkpoint"):
        error = Interrupted(signal.SIGTERM, "stopped", hint=hint)
        again = error_from_json(error_as_json(error))
        assert isinstance(again, Interrupted) and (again.hint, again.exit_code) == (hint, 143)


def test_ranks_that_end_unasked_are_a_failure(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, context.workspace.scratch, "exit 7\n")
    error = ended(context)
    assert isinstance(error, TrainingError) and "ended with exit code 7" in error.message
    fault = '{"rank": 1, "ours": true, "kind": "DataError", "message": "no clips", "hint": "", "command": ""}'
    instead(monkeypatch, context.workspace.scratch, f"echo '{fault}' > work/ranks/error-1.json; exit 1\n")
    context = replace(context, stop=Stop(signal.SIGTERM))  # what they say of themselves goes before the signal
    assert ended(context).message == "no clips"


@pytest.mark.parametrize("used", [True, False])
def test_memory_of_the_gpu_is_given_back_first(context: Context, monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    import torch

    freed: list[bool] = []
    folder = context.workspace.scratch / "ranks"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append((folder / "log.txt").exists()))
    instead(monkeypatch, context.workspace.scratch, "exit 7\n")
    ended(context)
    assert freed == ([False] if used else [])  # before anything is started; CUDA is not begun for it


def test_a_stage_of_the_pipeline_is_refused_as_a_run_is(context: Context) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml"), Lock())
    runtime = context.runtime.model_copy(update={"gpus": 3})
    with pytest.raises(UsageError, match="a batch of 16 cannot be divided by gpus: 3"):
        run_stage(plan, plan.stage("student"), runtime, Silent())
    _, ran = run_stage(plan, plan.stages[0], runtime, Silent())  # which trains nothing
    assert ran


@pytest.mark.parametrize(("there", "here", "expected"), [(2, 1, 2), (2, 3, 2), (3, 1, 1), (3, 2, 1), (None, 3, 1)])
def test_what_several_made_is_rebuilt_by_as_many_where_that_is_possible(
    context: Context, there: int | None, here: int, expected: int
) -> None:
    """A batch of 16 is not shared by three."""
    run = {"gpus": there, "threads": 1, "device": "cpu"} if there else None
    made = runtime_like_original(context.stage, context.runtime.model_copy(update={"gpus": here}), run, (None, None))
    assert made.gpus == expected


def test_a_stage_that_goes_on_says_what_is_other_and_keeps_it(context: Context) -> None:
    """First after a kill that left nothing to read, then with other code, then as it was."""
    from stagedkd.stages.training import training_device

    scratch, heard = context.workspace.scratch, Heard()
    one = replace(context, listener=heard, runtime=context.runtime.model_copy(update={"gpus": 1, "threads": 1}))
    (scratch / "checkpoint.pt").touch()
    (scratch / "began.json").touch()
    training_device(one)
    assert ["cannot tell how this stage was started" in note for note in heard.notes] == [True]
    first, now = read_environments(scratch)
    assert first == {} and now["device_name"] == now["cpu"] and now["cpu_capability"] and now["packages"]["torch"]

    write_environments(scratch, [{**now, "code": "old"}])
    training_device(one)
    training_device(one)
    assert [piece["code"] for piece in read_environments(scratch)] == ["old", now["code"]]
    assert len(heard.notes) == 2 and f"code: old then, {now['code']} now" in heard.notes[1]
