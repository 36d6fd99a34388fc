"""One training over several processes: what one process computes, nobody left behind, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stagedkd.errors import TrainingError
from stagedkd.experiment.reproduce import environment_differences
from stagedkd.files import FileBytes
from stagedkd.models.build import user_function
from stagedkd.stages.provenance import read_environments, write_environments
from stagedkd.train.ranks import Ranks, convert_batchnorms, refuse_batch_statistics
from tests.shared_training import CASES, network, trained
from tests.tools import files_of

REPO = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two gloo ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "resumed").mkdir()
    (folder / "resumed" / "checkpoint.pt").touch()
    write_environments(folder / "resumed", [{"gpus": 1, "threads": 3}])
    command = [sys.executable, "-m", "tests.shared_training", str(folder)]
    both = [
        subprocess.Popen(
            [*command, str(i), "2"], cwd=REPO, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, text=True
        )
        for i in (0, 1)
    ]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return folder


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_train_what_one_trains(by_two: Path, name: str) -> None:
    """In float64 six steps differ by rounding alone: 1e-9 of each tensor's largest entry."""
    found, other = (load_file(by_two / f"{name}-{rank}.safetensors") for rank in (0, 1))
    torch.set_num_threads(1)
    expected = trained(CASES[name], Ranks())
    start = {f"student.{n}": t for n, t in network(4, 1).double().state_dict().items()}
    assert any((found[n] - t).abs().max() > 1e-6 for n, t in start.items()), "nothing was trained"
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert torch.equal(found[tensor], other[tensor]), f"the ranks differ in {tensor}"
        if values.is_floating_point():
            scale = max(1e-3, float(values.abs().max()))
            assert float((found[tensor] - values).abs().max()) <= 1e-9 * scale, tensor
        else:
            assert torch.equal(found[tensor], values), tensor


def test_a_batch_norm_over_a_share_of_the_batch_is_refused(by_two: Path) -> None:
    for rank in (0, 1):
        said = (by_two / f"refused-{rank}.txt").read_text("utf-8")
        assert said.startswith(
            "phase p: BatchNorm net.stem.1 and 1 more would use the statistics of one of 2 processes"
        )
        assert "gpus: 1" in said and "GroupNorm" in said
    ranks = Ranks(0, 2)
    with pytest.raises(TrainingError, match="BatchNorm"):
        refuse_batch_statistics(network(4, 1, "batch").train(), ranks, "phase p")
    refuse_batch_statistics(network(4, 1, "batch").eval(), ranks, "phase p")  # frozen: statistics are kept ones
    refuse_batch_statistics(network(4, 1, "batch").train(), Ranks(), "phase p")
    refuse_batch_statistics(network(4, 1).train(), ranks, "phase p")


def test_ranks_decide_by_what_the_file_said_before_the_first_one_writes_it(by_two: Path) -> None:
    """The second one comes late, and must not find what the first one made of it."""
    first, second = ((by_two / "resumed" / f"heard-{rank}.txt").read_text("utf-8") for rank in (0, 1))
    assert first == second and "gpus: 1 then, 2 now" in first and "threads: 3 then, 1 now" in first
    pieces = read_environments(by_two / "resumed")
    assert [(piece["gpus"], piece["threads"]) for piece in pieces] == [(1, 3), (2, 1)]


def test_on_cuda_batch_norms_are_synchronised_and_keep_their_names() -> None:
    mine, ranks = network(4, 1, "batch").train(), Ranks(0, 2)
    before, parameters = mine.state_dict(), list(mine.parameters())
    convert_batchnorms(mine, torch.device("cpu"), ranks)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in mine.modules())
    convert_batchnorms(mine, torch.device("cuda"), ranks)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in mine.modules()) == 2
    refuse_batch_statistics(mine, ranks, "phase p")
    assert mine.state_dict().keys() == before.keys()
    assert all(now is then for now, then in zip(mine.parameters(), parameters, strict=True))


# The real command line from here on: one hop of a network with dropout, below a teacher whose weights are there.
OWN = """\
from torch import nn


def build(classes, width=6, drop=0.3):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, width, 3, (1, 2, 2), 1), nn.GroupNorm(2, width), nn.ReLU()))
    net.add_module("mid", nn.Sequential(nn.Dropout(drop), nn.Conv3d(width, width, 3, 2, 1), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, classes)))
    return net
"""
SPEC = """\
data: {kind: shapes, classes: 4, train: 48, val: 16, test: 16}
clip: {frames: 4, size: 16}
labels: {clean: 0.25}
train: {batch: 16, lr: 1e-2, warmup_epochs: 0.5}
teacher:
  {arch: file, path: nets/own.py, args: {width: 8}, params: 9000, substages: [[stem], [mid]], weights: nets/t.safetensors, epochs: 0}
student: {arch: file, path: nets/own.py, params: 5000, substages: [[stem], [mid]]}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0, sp: 1.0}}
    joint: {epochs: 40, losses: {ce: 0.1, kd: 0.9, sp: 10}}
"""


LOST = """\
import socket

socket.getfqdn = socket.gethostname = lambda *_: "nowhere.invalid"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the spec ran once with one process (store `one`) and once with two (store `two`)."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("specs", "nets", "lost"):
        (folder / part).mkdir()
    (folder / "lost" / "sitecustomize.py").write_text(LOST, "utf-8")
    (folder / "queue.py").write_text("raise ImportError('this is not the standard one')\n", "utf-8")
    (folder / "nets" / "own.py").write_text(OWN, "utf-8")
    (folder / "specs" / "own.yaml").write_text(SPEC, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1, checkpoint_seconds: 0}\n", "utf-8")
    torch.manual_seed(1)
    build = user_function(FileBytes.read(folder / "nets" / "own.py"), "build")
    save_file(build(4, width=8).state_dict(), folder / "nets" / "t.safetensors")
    for store, gpus in (("one", 1), ("two", 2)):
        code, errors = ended(start(folder, store, gpus))
        assert code == 0, errors
    return folder


def start(folder: Path, store: str, gpus: int = 2) -> subprocess.Popen[str]:
    """A run, on a machine whose name leads nowhere. The launcher does not look in the working folder for modules, as the
    installed command does not."""
    command = [sys.executable, "-P", "-m", "stagedkd.cli", "run", "specs/own.yaml", "-v", "--gpus", str(gpus)]
    command += ["--store", store, "--results", f"results-{store}"]
    return subprocess.Popen(command, cwd=folder, env=lost(folder), stderr=subprocess.PIPE, text=True)


def lost(folder: Path) -> dict[str, str]:
    return os.environ | ONE_THREAD | {"PYTHONPATH": f"{folder / 'lost'}{os.pathsep}{REPO}"}


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    errors = process.communicate(timeout=600)[1]
    return process.returncode, errors


def ranks_of(folder: Path) -> dict[str, int]:
    """Processes that work below a folder, by rank; torchrun itself is `torchrun`."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"stagedkd.launch.rank" not in words or not any(os.fsencode(folder) in word for word in words):
                continue
            variables = dict(v.partition(b"=")[::2] for v in (entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue  # gone in between
        found["torchrun" if b"torchrun" in words else variables[b"RANK"].decode()] = int(entry.name)
    return found


def wait_for_training(folder: Path, store: str, process: subprocess.Popen[str], resumed: int) -> dict[str, int]:
    """Until the joint phase is at work, in a run that went on for the `resumed`-th time; the ranks, by number."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list((folder / store).glob(".work/distill-*/events.jsonl"))
        rows = [json.loads(line) for line in logs[0].read_text("utf-8").splitlines()] if logs else []
        starts = [i for i, row in enumerate(rows) if row["event"] == "resumed"]
        since = rows[starts[-1] :] if starts else rows
        if len(starts) == resumed and any(row["event"] == "epoch" and row["phase"] == "joint" for row in since):
            return ranks_of(folder / store)
        time.sleep(0.02)
    raise AssertionError(ended(process)[1])


def events_of(folder: Path, store: str, name: str) -> Iterator[dict[str, object]]:
    for line in next((folder / store).glob("distill-*/events.jsonl")).read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["event"] == name:
            yield row


def test_the_command_line_trains_by_two_ranks(place: Path) -> None:
    """The first phase, which has no dropout, is that of one process; keys are the same, and run.json says how many."""
    one, two = ({row["phase"]: row["losses"] for row in events_of(place, store, "epoch")} for store in ("one", "two"))
    assert one["grow.1"] == pytest.approx(two["grow.1"], rel=1e-4)  # float32, AdamW
    assert {p.name for p in (place / "one").iterdir()} == {p.name for p in (place / "two").iterdir()}
    validated = [
        [(row["phase"], row["epoch"]) for row in events_of(place, each, "validation")] for each in ("one", "two")
    ]
    assert validated[0] == validated[1] != []  # by the first rank alone
    for store, count in (("one", 1), ("two", 2)):
        run = json.loads(next((place / store).glob("distill-*/run.json")).read_text("utf-8"))
        assert run["gpus"] == count
    manifest = next((place / "two").glob("distill-*/files/manifest.json")).read_text("utf-8")
    assert "gpus" not in manifest


def test_what_two_ranks_made_is_rebuilt_by_two(place: Path) -> None:
    (student,) = (place / "two").glob("distill-*")
    command = [sys.executable, "-P", "-m", "stagedkd.cli", "reproduce", str(student), "--store", "again"]
    done = subprocess.run(command, cwd=place, env=lost(place), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "equal bit for bit" in done.stdout, done.stderr
    (again,) = (place / "again").glob("distill-*")
    assert json.loads((again / "run.json").read_text("utf-8"))["gpus"] == 2  # params.yaml says nothing, so one


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_killed_and_stopped_trainings_go_on_to_the_same_bits(place: Path) -> None:
    store = "killed"
    process = start(place, store)
    ranks = wait_for_training(place, store, process, 0)
    assert set(ranks) == {"torchrun", "0", "1"}
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while (left := ranks_of(place / store)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "ranks outlive their launcher"

    process = start(place, store)
    ranks = wait_for_training(place, store, process, 1)
    os.kill(ranks["1"], signal.SIGKILL)
    code, errors = ended(process)
    assert code == 1 and "rank 1 of 2 was ended by SIGKILL" in errors and "resumes from the last checkpoint" in errors
    assert not ranks_of(place / store)

    process = start(place, store)
    wait_for_training(place, store, process, 2)
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert code == 143 and "checkpoint written" in errors and "Traceback" not in errors, errors
    assert not ranks_of(place / store)

    code, errors = ended(start(place, store))
    assert code == 0, errors
    assert not list((place / store / ".work").iterdir())
    assert files_of(place / store) == files_of(place / "two")
    assert len(list(events_of(place, store, "epoch"))) == len(
        list(events_of(place, "two", "epoch"))
    )  # none was told twice


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_a_signal_to_all_is_a_stop_after_which_one_process_goes_on(place: Path) -> None:
    """As a scheduler ends a job; and run.json and `reproduce` say that the stage was made in two pieces."""
    store = "mixed"
    process = start(place, store)
    ranks = wait_for_training(place, store, process, 0)
    for number in (ranks["0"], ranks["1"], ranks["torchrun"], process.pid):
        os.kill(number, signal.SIGTERM)
    code, errors = ended(process)
    assert code == 143 and "checkpoint written" in errors and "Traceback" not in errors, errors
    assert not ranks_of(place / store)

    code, errors = ended(start(place, store, gpus=1))
    assert code == 0 and "resuming in a different environment" in errors and "gpus: 2 then, 1 now" in errors, errors
    (student,) = (place / store).glob("distill-*")
    run = json.loads((student / "run.json").read_text("utf-8"))
    assert run["gpus"] == 1 and [piece["gpus"] for piece in run["began"]] == [2, 1]
    found = environment_differences(
        {"it": run}, {"it": {name: value for name, value in run.items() if name != "began"}}
    )
    assert found == ("the original it was made in several environments: gpus: 2, then gpus: 1",)
    assert not any("began" in path.read_text("utf-8") for path in (place / "two").glob("*/run.json"))


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_runs(place: Path) -> None:
    code, errors = ended(start(place, "odd", gpus=3))
    assert code == 2 and "a batch of 16 cannot be divided by gpus: 3" in errors
    assert not (place / "odd").exists() or not list((place / "odd").glob("*-*"))


def rehearse(place: Path, store: str, gpus: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "stagedkd.cli", "rehearse", "specs/own.yaml", "--gpus", str(gpus)]
    command += ["--store", store]
    return subprocess.run(command, cwd=place, env=lost(place), capture_output=True, text=True, timeout=600)


def test_a_rehearsal_trains_by_as_many_ranks_as_the_run(place: Path) -> None:
    done = rehearse(place, "rehearsed", 2)
    assert done.returncode == 0 and "the run will take about" in done.stdout, done.stderr
    assert not any((place / "rehearsed").glob("distill-*")) and not ranks_of(place / "rehearsed")
    kept = [json.loads(path.read_text("utf-8")) for path in (place / "cache" / "rehearsed").iterdir()]
    steps = {phase for row in kept for phase in row["steps"]}
    assert {"grow.1", "joint"} <= steps and all(row["memory"]["resident"] > 0 for row in kept)
    odd = rehearse(place, "odd", 3)
    assert odd.returncode == 2 and "a batch of 16 cannot be divided by gpus: 3" in odd.stderr
