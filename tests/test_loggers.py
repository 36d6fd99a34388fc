"""Loggers, each against the real package: what is logged is read back from the files that the package wrote."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagedkd import Listener, Silent
from stagedkd.experiment.run import with_installed_loggers
from stagedkd.plan.loggers import LoggerName
from stagedkd.plan.runtime import Runtime
from stagedkd.store.runlog import EVENTS, read_events
from stagedkd.train.loggers import __main__ as process_module
from stagedkd.train.loggers import sink as sink_module
from stagedkd.train.loggers.rows import LoggedRun, Row, flat, row_of
from stagedkd.train.loggers.sink import LoggerSink, environment
from tests.conftest import REPO
from tests.test_ddp import OWN, SPEC

Points = dict[str, list[tuple[int, float]]]  # the steps and values of each metric
TOOLS: tuple[LoggerName, ...] = ("tensorboard", "wandb", "mlflow", "trackio")
RUN = "distill-1183da6ced05"
KILLER = Path(__file__).with_name("killer.py")

# A training as the loop writes it: epochs of 3 steps, a checkpoint after the first.
TRAINING = """\
import os, signal, sys, time
from pathlib import Path
from stagedkd.store.runlog import EVENTS
from stagedkd.train.loggers.rows import LoggedRun
from stagedkd.train.loggers.sink import LoggerSink
from stagedkd.train.sinks import open_log

first, last, killed, *names = sys.argv[1:]
scratch = Path("scratch")
scratch.mkdir(exist_ok=True)
config = {"spec": "tiny", "phases.0.train.lr": 0.03}
run = LoggedRun("distill-1183da6ced05", "student-distill-1183da6ced05", "project", "tiny", "distill", config, "logs")
sink = LoggerSink(names, run, scratch / EVENTS, lambda text: print("note:", text))
with open_log(scratch, loggers=(sink,)) as log:
    if first != "1":
        log.truncate(int(Path("size").read_text()))
        log.write("resumed", phase="joint", step=3, phase_step=3)
    for epoch in range(int(first), int(last) + 1):
        at = {"phase": "joint", "epoch": epoch, "step": 3 * epoch}
        losses, terms = {"kd": epoch / 4, "total": epoch / 2}, {"kd": {"mean": epoch / 4, "share": 1.0}}
        log.write("epoch", **at, epochs=4, lr=0.5, losses=losses, clips_per_s=10.0, terms=terms)
        log.write("validation", **at, top1=epoch / 4, loss=1.0, clips=16)
        if epoch == 1:
            Path("size").write_text(str(log.flush()))
    if killed == "killed":
        while not sink.lines.empty():
            time.sleep(0.01)  # until the loggers' process has all events
        os.kill(os.getpid(), signal.SIGKILL)
"""


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run TRAINING in a folder, as a process of its own that does not know that it is tested: MLflow then sends
    nothing."""
    given = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    variables = given | {"PYTHONPATH": str(REPO)} | environment
    command = [sys.executable, "-c", TRAINING, *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False)


# ---------------------------------------------------------------- what each tool has


def tensorboard_runs(logs: Path) -> dict[str, Points]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs: dict[str, Points] = {}
    for folder in (logs / "tensorboard").iterdir():
        read = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
        tags = read.Tags()["scalars"]
        runs[folder.name] = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags}
    return runs


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB, with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # no header fits into the rest of a block
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def wandb_runs(logs: Path) -> dict[str, Points]:
    runs: dict[str, Points] = {}
    for path in (logs / "wandb").glob("offline-run-*/*.wandb"):
        points: Points = {}
        for record in wandb_records(path):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in (name for name in row if not name.startswith("_")):
                points.setdefault(name, []).append((row["_step"], row[name]))
        assert path.parent.name not in runs
        runs[path.parent.name] = points
    return runs


def mlflow_runs(logs: Path) -> dict[str, Points]:
    from mlflow import MlflowClient

    client, runs = MlflowClient(f"sqlite:///{logs / 'mlflow.db'}"), dict[str, Points]()
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        assert run.info.status == "FINISHED" and run.data.params["phases.0.train.lr"] == "0.03"
        runs[run.info.run_name] = {name: [(m.step, m.value) for m in points] for name, points in history.items()}
    return runs


def trackio_runs(logs: Path) -> dict[str, Points]:
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; print(json.dumps({p + '/' + r: "
        "S.get_logs(p, r) for p in S.get_projects() for r in S.get_runs(p)}))"
    )
    variables = environment(logs, os.environ)
    found = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    runs: dict[str, Points] = {}
    for run, rows in json.loads(found.stdout.splitlines()[-1]).items():
        names = {name for row in rows for name in row} - {"step", "timestamp"}
        runs[run] = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    return runs


RUNS = {"tensorboard": tensorboard_runs, "wandb": wandb_runs, "mlflow": mlflow_runs, "trackio": trackio_runs}


# ---------------------------------------------------------------- the tools

RECORDER = """\
import os, socket

def record(address):
    host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["ADDRESSES"], "a") as stream:
            print(host, file=stream)

connect, look_up = socket.socket.connect, socket.getaddrinfo
socket.socket.connect = lambda self, address: (record(address), connect(self, address))[1]
socket.getaddrinfo = lambda host, *more, **named: (record((host,)), look_up(host, *more, **named))[1]
"""


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_kill_and_a_resume_leave_one_run_with_every_step_once_and_use_no_network(
    tool: LoggerName, tmp_path: Path
) -> None:
    """Python's look-ups and connections are recorded. W&B's own process is none of Python: it would use the proxy."""
    pytest.importorskip(tool)
    (tmp_path / "recorder").mkdir()
    (tmp_path / "recorder" / "sitecustomize.py").write_text(RECORDER, "utf-8")
    addresses = tmp_path / "addresses"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        variables = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address)
        variables |= {"PYTHONPATH": f"{tmp_path / 'recorder'}{os.pathsep}{REPO}", "ADDRESSES": str(addresses)}
        variables["HF_TOKEN"] = "hf_secret"
        killed = train(tmp_path, "1", "3", "killed", tool, **variables)
        resumed = train(tmp_path, "2", "4", "", tool, **variables)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not addresses.exists(), addresses.read_text("utf-8")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, ""), killed.stderr
    assert (resumed.returncode, resumed.stdout) == (0, ""), resumed.stdout + resumed.stderr
    runs = RUNS[tool](tmp_path / "logs")
    assert len(runs) == 1 and next(iter(runs)).endswith(RUN)
    (points,) = runs.values()
    names = {"loss/kd", "loss/total", "weighted/kd", "share/kd", "lr", "clips_per_s", "epoch"}
    assert points.keys() == {*(f"train/{name}" for name in names), "val/top1", "val/loss"}
    assert points["train/loss/kd"] == points["val/top1"] == [(3, 0.25), (6, 0.5), (9, 0.75), (12, 1.0)]
    assert points["train/lr"] == [(3, 0.5), (6, 0.5), (9, 0.5), (12, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["tensorboard", "wandb"])
def test_evaluations_are_in_the_logged_run_of_their_network(tool: LoggerName, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    assert train(tmp_path, "1", "2", "", tool).stdout == ""
    logs, notes = tmp_path / "logs", list[str]()
    run = LoggedRun(RUN, f"student-{RUN}", "project", "tiny", "distill", {}, str(logs))
    for split in ("val", "test"):
        sink = LoggerSink((tool,), run, tmp_path / "scratch" / EVENTS, notes.append)
        sink.write("result", step=6, metrics={f"{split}/top5": 0.75, f"{split}/per_class": {"a": 0.5}})
        sink.write("ended", state="finished")
    (points,) = RUNS[tool](logs).values()
    assert points["val/top5"] == points["test/top5"] == [(6, 0.75)] and not notes
    assert points["train/lr"] == [(3, 0.5), (6, 0.5)] and "test/per_class" not in points


# ---------------------------------------------------------------- tools that fail


def stub(folder: Path, code: str) -> str:
    """A package named tensorboard with this code, and the PYTHONPATH on which it hides the real one."""
    (folder / "stub" / "tensorboard").mkdir(parents=True)
    (folder / "stub" / "tensorboard" / "__init__.py").write_text(code, "utf-8")
    return f"{folder / 'stub'}{os.pathsep}{REPO}"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise RuntimeError('no such device\\nmore')", "RuntimeError: no such device"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(9)", "the process of the loggers ended early, with code 9"),
        ("import os; os.kill(os.getpid(), 9)", "the process of the loggers ended early, with code -9"),
        (
            "raise ModuleNotFoundError(name='tensorboard')",
            "the package is not installed: pip install 'stagedkd[tensorboard]'",
        ),
    ],
)
def test_a_tool_that_fails_costs_one_note(code: str, error: str, tmp_path: Path) -> None:
    found = train(tmp_path, "1", "3", "", "tensorboard", PYTHONPATH=stub(tmp_path, code))
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"note: tensorboard does not log {RUN}: {error}\n"
    events = read_events((tmp_path / "scratch" / EVENTS).read_bytes())[0]
    assert [event["event"] for event in events] == ["epoch", "validation"] * 3


def test_a_folder_that_cannot_be_written_costs_one_note(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file, not a folder", "utf-8")
    found = train(tmp_path, "1", "3", "", "tensorboard")
    assert found.returncode == 0 and found.stdout.count("note: tensorboard does not log") == 1, found.stdout


def test_a_training_does_not_wait_for_a_tool_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", stub(tmp_path, "import time; time.sleep(20)"))
    monkeypatch.setitem(sink_module.PATIENCE, "finished", 0.2)
    notes: list[str] = []
    run = LoggedRun(RUN, f"student-{RUN}", "project", "tiny", "distill", {}, str(tmp_path / "logs"))
    sink = LoggerSink(("tensorboard",), run, tmp_path / EVENTS, notes.append)
    for _ in range(1000):  # more than a pipe holds
        sink.write("note", text="x" * 1000)
    sink.write("ended", state="finished")
    assert len(notes) == 1 and "0 seconds" in notes[0] and sink.failures.keys() == {"tensorboard"}


class Broken:
    """A logger that fails at its second row."""

    def __init__(self) -> None:
        self.last = {"a": 3}
        self.rows: list[Row] = []

    def log(self, row: Row) -> None:
        if self.rows:
            raise OSError(28, "No space left on device")
        self.rows.append(row)

    def close(self, state: str) -> None:
        raise AssertionError("it is dropped")


def test_a_logger_that_cannot_write_is_dropped_and_gets_each_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, reports = Broken(), io.StringIO()
    monkeypatch.setattr(process_module, "open_logger", lambda *_: logger)
    loggers = process_module.Open(["tensorboard"], LoggedRun(RUN, RUN, "", "", "", {}, ""), reports)
    for step in (3, 3, 6, 9, 12):
        loggers.log(Row(step, 0.0, {"a": 1.0} if step < 6 else {"a": 1.0, "b": 2.0}))
    loggers.close("finished")
    assert logger.rows == [Row(6, 0.0, {"a": 1.0, "b": 2.0})]
    (report,) = map(json.loads, reports.getvalue().splitlines())
    assert report == {"logger": "tensorboard", "error": "OSError: [Errno 28] No space left on device"}


# ---------------------------------------------------------------- what they are told


def test_what_the_tools_send_is_off_unless_the_user_asks(tmp_path: Path) -> None:
    plain = environment(tmp_path, {})
    assert plain["MLFLOW_DISABLE_TELEMETRY"] == "true" and plain["WANDB_ERROR_REPORTING"] == "false"
    assert plain["HF_HUB_OFFLINE"] == "1" and plain["TRACKIO_DIR"] == str(tmp_path / "trackio")
    asked = environment(tmp_path, {"TRACKIO_SPACE_ID": "me/space", "MLFLOW_DISABLE_TELEMETRY": "false"})
    assert "HF_HUB_OFFLINE" not in asked and asked["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_events_become_metrics_by_the_names_that_users_expect() -> None:
    losses, terms = {"kd": 0.5, "total": 0.25}, {"kd": {"mean": 0.25, "share": 1.0}}
    epoch = {"event": "epoch", "time": 1.5, "step": 6, "epoch": 2, "lr": 0.1, "losses": losses, "terms": terms}
    assert row_of(epoch) == Row(
        6,
        1.5,
        {
            "train/lr": 0.1,
            "train/epoch": 2.0,
            "train/loss/kd": 0.5,
            "train/loss/total": 0.25,
            "train/weighted/kd": 0.25,
            "train/share/kd": 1.0,
        },
    )
    validation = {
        "event": "validation",
        "time": 1.5,
        "step": 6,
        "phase": "joint",
        "top1": 0.5,
        "loss": None,
        "clips": 9,
    }
    assert row_of(validation) == Row(6, 1.5, {"val/top1": 0.5})
    assert row_of({"event": "resumed", "time": 1.5, "step": 6}) is None


def test_the_work_of_a_stage_is_told_as_flat_values() -> None:
    work = {"kind": "teach", "phases": [{"train": {"lr": 0.1, "ema": None}}], "clip": {"size": (2, 3)}}
    assert flat(work) == {"kind": "teach", "phases.0.train.lr": 0.1, "clip.size.0": 2, "clip.size.1": 3}


# ---------------------------------------------------------------- whole runs

SMALL = ("--set", "cascade=[]", "--set", "control=null", "--no-dvc", "--no-rehearsal")


def logged_and_kept(project: Path, store: str = "store", logs: str = "logs") -> tuple[Points, Points]:
    """The total losses of all trainings, by the folders of their stages: in TensorBoard, and in the store."""
    logged = {name.split("-", 1)[1]: run["train/loss/total"] for name, run in tensorboard_runs(project / logs).items()}
    kept: Points = {}
    for path in sorted((project / store).glob(f"*/{EVENTS}")):
        events = [event for event in read_events(path.read_bytes())[0] if event["event"] == "epoch"]
        kept[path.parent.name] = [(e["step"], np.float32(e["losses"]["total"]).item()) for e in events]
    return logged, kept


@pytest.mark.slow
def test_a_logged_run_that_was_killed_gives_the_bits_of_one_that_was_not_logged(project: Path) -> None:
    pytest.importorskip("tensorboard")
    logged = ("run", "specs/tiny.yaml", *SMALL, "--jobs", "1", "--log", "tensorboard")
    killed = subprocess.run([sys.executable, str(KILLER), "step", "15", *logged], cwd=project, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run([sys.executable, "-m", "stagedkd.cli", *logged], cwd=project, check=True)
    assert resumed.returncode == 0
    points, kept = logged_and_kept(project)
    assert len(kept) == 2 and points == kept
    assert all(run["val/top1"][-1][0] == run["train/lr"][-1][0] for run in tensorboard_runs(project / "logs").values())
    files = sorted(path for path in (project / "logs").rglob("*"))
    again = subprocess.run([sys.executable, "-m", "stagedkd.cli", *logged], cwd=project, check=True)
    assert again.returncode == 0 and sorted(path for path in (project / "logs").rglob("*")) == files  # all are hits
    plain = ("run", "specs/tiny.yaml", *SMALL, "--jobs", "1", "--store", "plain")
    subprocess.run([sys.executable, "-m", "stagedkd.cli", *plain], cwd=project, check=True)
    weights = sorted(path.relative_to(project / "plain") for path in (project / "plain").rglob("*.safetensors"))
    assert len(weights) == 2
    assert all((project / "plain" / path).read_bytes() == (project / "store" / path).read_bytes() for path in weights)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["--jobs", "--gpus"])
def test_stages_in_other_processes_are_logged_once(processes: str, project: Path) -> None:
    pytest.importorskip("tensorboard")
    runtime = "runtime: {device: cpu, threads: 1, log: [tensorboard], logs: elsewhere}\n"
    (project / "params.yaml").write_text(runtime, "utf-8")
    (project / "nets").mkdir()
    (project / "nets" / "own.py").write_text(OWN, "utf-8")  # without BatchNorm, which ranks refuse on the CPU
    spec = SPEC.replace("weights: nets/t.safetensors, epochs: 0", "labels: all, epochs: 2").replace("40", "2")
    (project / "specs" / "own.yaml").write_text(spec, "utf-8")
    command = [sys.executable, "-m", "stagedkd.cli", "run", "specs/own.yaml", "--no-dvc", processes, "2"]
    subprocess.run(command, cwd=project, check=True)
    points, kept = logged_and_kept(project, logs="elsewhere")
    assert len(kept) == 2 and points == kept


def test_a_tool_that_is_not_installed_costs_one_note_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagedkd.plan.loggers.find_spec", lambda name: None if name == "wandb" else name)
    heard = Heard()
    runtime = with_installed_loggers(Runtime(log=("wandb", "tensorboard", "wandb")), heard)
    assert runtime.log == ("tensorboard",)
    assert heard.notes == ["wandb is not installed, so it logs nothing: pip install 'stagedkd[wandb]'"]


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
def test_the_listener_of_the_page_hears_the_losses(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPO / "docs" / "logging.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    spec = (
        (project / "specs" / "tiny.yaml")
        .read_text("utf-8")
        .replace("cascade: [0.5]\n", "")
        .replace("control: ce\n", "")
    )
    (project / "specs" / "tiny.yaml").write_text(spec, "utf-8")
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1, jobs: 1}\n", "utf-8")
    exec(compile(example, "docs/logging.md", "exec"), {})
    losses = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert losses.keys() == {"teacher", "student"} and all(0 < loss < 100 for loss in losses.values())
    methods = {name for name in vars(Listener) if not name.startswith("_")}
    assert set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)) == methods
    assert all(getattr(Listener, name).__doc__ for name in methods)
