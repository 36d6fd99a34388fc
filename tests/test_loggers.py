"""Loggers, each against the real package: what is logged is read back from the files that the package wrote."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagedkd.plan.loggers import LoggerName
from stagedkd.train.loggers.sink import environment
from tests.conftest import REPO

Points = dict[str, list[tuple[int, float]]]  # the steps and values of each metric
TOOLS: tuple[LoggerName, ...] = ("tensorboard", "wandb", "mlflow", "trackio")
RUN = "distill-1183da6ced05"

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
    """Run TRAINING in a folder, as a process of its own."""
    variables = os.environ | {"PYTHONPATH": str(REPO)} | environment
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


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_kill_and_a_resume_leave_one_run_that_has_every_step_once(tool: LoggerName, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    killed = train(tmp_path, "1", "3", "killed", tool)
    assert killed.returncode == -signal.SIGKILL
    resumed = train(tmp_path, "2", "4", "", tool)
    assert (resumed.returncode, resumed.stdout) == (0, ""), resumed.stdout + resumed.stderr
    runs = RUNS[tool](tmp_path / "logs")
    assert len(runs) == 1 and next(iter(runs)).endswith(RUN)
    (points,) = runs.values()
    names = {"loss/kd", "loss/total", "weighted/kd", "share/kd", "lr", "clips_per_s", "epoch"}
    assert points.keys() == {*(f"train/{name}" for name in names), "val/top1", "val/loss"}
    assert points["train/loss/kd"] == points["val/top1"] == [(3, 0.25), (6, 0.5), (9, 0.75), (12, 1.0)]
    assert points["train/lr"] == [(3, 0.5), (6, 0.5), (9, 0.5), (12, 0.5)]
