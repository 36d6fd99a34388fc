"""A killed run goes on to the same bits, wherever it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stagedkd import compile_plan, load_spec
from stagedkd.errors import TrainingError
from stagedkd.stages.inputs import note_inputs
from stagedkd.store.manifest import manifest_of
from stagedkd.store.runlog import read_events
from stagedkd.store.store import Artifact, Store
from stagedkd.train import checkpoint
from stagedkd.train.loop import fit
from stagedkd.train.sinks import open_log
from tests.conftest import OWN_NET, TINY, Command
from tests.test_train import job, phase
from tests.tools import file_bytes, files_of

KILLER = Path(__file__).with_name("killer.py")
STUDENT = "student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]}"


def dropout_spec() -> str:
    """Four networks to train, so that ten kills find a run that is not done yet."""
    own = "student: {arch: file, path: nets/own.py, substages: [[stem], [mid]]}"
    between = "cascade: [{arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]}]"
    return TINY.replace("cascade: [0.5]", between).replace(STUDENT, own).replace("epochs: 3", "epochs: 6")


@pytest.mark.slow
def test_ten_kills_give_the_same_bits(project: Path, stagedkd: Command) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "own.py").write_text(OWN_NET, "utf-8")
    (project / "specs" / "own.yaml").write_text(dropout_spec(), "utf-8")
    whole = stagedkd("run", "specs/own.yaml", "--store", "whole", "--results", "r1")
    assert whole.returncode == 0, whole.stderr
    assert "running your own code" in whole.stderr
    dice = random.Random(20261121)
    moments = [("step", dice.randint(1, 7)) for _ in range(4)] + [("checkpoint", dice.randint(1, 3)) for _ in range(3)]
    moments += [("publish", dice.randint(1, 4)), ("publish", dice.randint(1, 4)), ("rename", 1)]
    dice.shuffle(moments)
    died: list[bool] = []
    for where, moment in moments:
        command = [sys.executable, str(KILLER), where, str(moment), "run", "specs/own.yaml", "--store", "killed"]
        found = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
        assert found.returncode in (0, -signal.SIGKILL), found.stderr
        died.append(found.returncode == -signal.SIGKILL)
    last = stagedkd("run", "specs/own.yaml", "--store", "killed", "--results", "r2")
    assert last.returncode == 0, last.stderr
    assert all(died), [moment for moment, dead in zip(moments, died, strict=True) if not dead]
    assert files_of(project / "killed") == files_of(project / "whole")
    assert (project / "r1/own/student.safetensors").read_bytes() == (
        project / "r2/own/student.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_the_run_goes_on(project: Path, stagedkd: Command, number: int, code: int) -> None:
    longer = ["--set", "teacher.epochs=60"]
    command = [sys.executable, "-m", "stagedkd.cli", "run", "specs/tiny.yaml", "--store", "a", "-v", *longer]
    process = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((project / "a").glob(".work/teach-*/checkpoint.pt")):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors
    assert "checkpoint written" in errors and "resume from the checkpoint" in errors and "Traceback" not in errors
    states = stagedkd("plan", "specs/tiny.yaml", "--store", "a", *longer).stdout
    assert "resumable" in states
    assert stagedkd("run", "specs/tiny.yaml", "--store", "a", *longer).returncode == 0
    assert not any(
        "began" in path.read_text("utf-8") for path in (project / "a").glob("*/run.json")
    )  # all is as it was
    assert stagedkd("run", "specs/tiny.yaml", "--store", "b", *longer).returncode == 0
    assert files_of(project / "a") == files_of(project / "b")


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(project: Path) -> None:
    command = [sys.executable, "-m", "stagedkd.cli", "run", "specs/tiny.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = [line for text in said for line in text.splitlines() if "done in" in line]
    assert len(done) == len({line.split(":")[0] for line in done}) == 10


def test_a_broken_checkpoint_is_an_error_that_says_what_to_remove(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError) as caught:
        checkpoint.load(tmp_path)
    assert str(tmp_path / "checkpoint.pt") in caught.value.hint


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    before = file_bytes(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        checkpoint.save(tmp_path, {"step": 2})
    assert file_bytes(tmp_path) == before


def test_flipped_bits_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    size = checkpoint.save(tmp_path, {"step": 1, "weights": torch.randn(300)})
    path, dice = tmp_path / "checkpoint.pt", random.Random(0)
    content = path.read_bytes()
    assert size == len(content)
    for _ in range(200):
        broken, place = bytearray(content), dice.randrange(8 * size)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(TrainingError, match="its digest differs") as caught:
            checkpoint.load(tmp_path)
        assert caught.value.hint == f"remove {path} to train this stage from the start"
    path.write_bytes(content[: size // 2])
    with pytest.raises(TrainingError, match="its digest differs"):
        checkpoint.load(tmp_path)


def test_events_are_on_the_disk_before_the_checkpoint_that_counts_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of all flushes of one epoch: events, then the checkpoint, then the name of the checkpoint."""
    flushed: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    fit(job(tmp_path, (phase(epochs=1),), checkpoint_seconds=0.0))
    assert flushed[:3] == ["events.jsonl", "checkpoint.pt.tmp", tmp_path.name]


def test_a_resumed_log_has_no_zero_bytes(tmp_path: Path) -> None:
    """Events that a power loss took are missing; the file ends with its last whole line."""
    log = open_log(tmp_path)
    log.write("epoch", losses={"ce": 1.0})
    size = log.flush()
    log.write("epoch", losses={"ce": 0.5})
    assert log.truncate(size) == 0 and log.path.stat().st_size == size
    log.path.write_bytes(log.path.read_bytes() + b'{"event": "ep')
    assert log.truncate(size + 100) == 100 and log.path.stat().st_size == size
    log.write("resumed", step=1)
    content = log.path.read_bytes()
    assert b"\0" not in content and [e["event"] for e in read_events(content)[0]] == ["epoch", "resumed"]


def test_a_stage_that_was_begun_with_another_teacher_is_not_resumed(project: Path) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    stage, store = plan.stage("teacher"), Store(project / "store")
    manifest = manifest_of(plan, stage)
    inputs = {"teacher": Artifact(project / "store/teach-1", manifest)}
    with store.held(plan.stage("student"), lambda: None) as lease:
        scratch = store.open(plan.stage("student"), lease).scratch
        note_inputs(scratch, inputs)
        (scratch / "checkpoint.pt").touch()
        note_inputs(scratch, inputs)
        other = {"teacher": Artifact(project / "store/teach-1", manifest.model_copy(update={"metrics": {"steps": 9}}))}
        with pytest.raises(TrainingError, match="begun with another teacher") as caught:
            note_inputs(scratch, other)
        assert caught.value.hint == f"remove {scratch} to make this stage from the start"
