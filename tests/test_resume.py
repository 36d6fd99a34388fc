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

from tests.conftest import OWN_NET, TINY, Command
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
    assert "running code of your own" in whole.stderr
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
    from stagedkd.errors import TrainingError
    from stagedkd.train import checkpoint

    assert checkpoint.load(tmp_path) is None
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError) as caught:
        checkpoint.load(tmp_path)
    assert str(tmp_path / "checkpoint.pt") in caught.value.hint


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from stagedkd.errors import TrainingError
    from stagedkd.train import checkpoint

    checkpoint.save(tmp_path, {"step": 1})
    before = file_bytes(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        checkpoint.save(tmp_path, {"step": 2})
    assert file_bytes(tmp_path) == before
