"""The real `dvc` on a pipeline of ours: what it runs and what it leaves, over edits, clones, remotes and kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from stagedkd.plan.key import Key
from tests.test_dvc import SMALL
from tests.tools import file_bytes, files_of

pytestmark = pytest.mark.slow
SPEC = SMALL.replace("labels: all, epochs: 1", "labels: all, epochs: 2")
OTHER = SPEC.replace("blocks: [1, 1], epochs: 1", "blocks: [1, 1], epochs: 1, train: {lr: 2e-2}")
STAGES = {"stagedkd-guard", "prepare", "weaken", "teach", "distill", "evaluate", "report-small"}
BIN = Path(sys.executable).parent  # where dvc and stagedkd are


@dataclass(frozen=True)
class Repo:
    """A scratch project under Git and DVC."""

    root: Path

    def call(self, *command: str, code: int = 0) -> str:
        found = subprocess.run(
            command, cwd=self.root, env=environment(self.root), capture_output=True, text=True, timeout=900, check=False
        )
        assert found.returncode == code, found.stdout + found.stderr
        return found.stdout + found.stderr

    def dvc(self, *arguments: str, code: int = 0) -> str:
        return self.call(sys.executable, "-m", "dvc", *arguments, code=code)

    def stagedkd(self, *arguments: str, code: int = 0) -> str:
        return self.call(sys.executable, "-m", "stagedkd.cli", *arguments, code=code)

    def repro(self) -> list[str]:
        """The kinds of the stages that `dvc repro` runs."""
        return ran(self.dvc("repro"))

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, "utf-8")

    def commit(self) -> None:
        self.call("git", "add", "-A")
        self.call("git", "commit", "-q", "-m", "a state")

    def clone(self, to: Path) -> Repo:
        self.call("git", "clone", "-q", str(self.root), str(to))
        return Repo(to)

    @property
    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text("utf-8")


def environment(root: Path) -> dict[str, str]:
    """DVC with nothing of this machine's: no settings, no caches, no news to its makers."""
    own = {
        f"DVC_{name}_DIR": str(root.parent / f"dvc-{name}") for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")
    }
    git = {f"GIT_{who}_{what}": "someone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | own | git | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


def ran(said: str) -> list[str]:
    names = re.findall(r"^Running stage '([^']+)'", said, re.MULTILINE)
    return [name if name in STAGES else name.split("-")[0] for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    """A project that `dvc repro` has built once, from nothing; tests work on copies."""
    repo = Repo(tmp_path_factory.mktemp("dvc") / "repo")
    repo.write("specs/small.yaml", SPEC)
    repo.write("params.yaml", "runtime: {device: cpu, threads: 1}\ndvc: {specs: [specs/small.yaml]}\n")
    repo.write(".gitignore", "/store/\n/results/\n/cache/\n")
    repo.call("git", "init", "-q")
    repo.dvc("init", "-q")
    assert repo.stagedkd("dvc", "sync").startswith("wrote dvc.yaml: 8 new stages")
    repo.commit()
    assert repo.repro() == [
        "stagedkd-guard",
        "prepare",
        "weaken",
        "teach",
        "distill",
        "evaluate",
        "evaluate",
        "report-small",
    ]
    repo.commit()
    yield repo


@pytest.fixture
def copied(made: Repo, tmp_path: Path) -> Callable[[], Repo]:
    def copy() -> Repo:
        shutil.copytree(made.root, tmp_path / "repo")
        return Repo(tmp_path / "repo")

    return copy


def test_a_repro_builds_the_results_and_a_second_runs_nothing(made: Repo) -> None:
    assert made.repro() == [] and "up to date" in made.dvc("status")
    stages = yaml.safe_load((made.root / "dvc.yaml").read_text("utf-8"))["stages"]
    report = stages["report-small"]
    named = {*report["outs"], *report["metrics"], *(next(iter(plot)) for plot in report["plots"])}
    folder = made.root / "results" / "small"
    there = {name if name.split("/")[0] != "plots" else "plots" for name in file_bytes(folder)}
    assert named == {f"results/small/{name}" for name in there}  # all of the folder, and no more
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    shown = json.loads(made.dvc("metrics", "show", "--json"))[""]["data"]["results/small/summary.json"]["data"]
    assert shown["student"]["top1"] == metrics["student"]["top1"] and set(shown) == {"student", "teacher"}
    assert not {"seconds", "latency"} & shown["student"].keys()
    plots = json.loads(made.dvc("plots", "show", "--json"))["data"]
    drawn = [row["network"] for row in plots["results/small/networks.json"][0]["content"]["data"]["values"]]
    assert drawn == ["teacher", "student"]
    assert {row["class"] for row in plots["results/small/classes.json"][0]["content"]["data"]["values"]} == set(
        metrics["student"]["per_class"]
    )


def test_after_a_run_nothing_is_left_to_repro(made: Repo, tmp_path: Path) -> None:
    repo = made.clone(tmp_path / "clone")
    repo.call("git", "rm", "-q", "dvc.lock")
    repo.stagedkd("run", "specs/small.yaml", "--no-dvc")
    assert not (repo.root / "dvc.lock").exists()
    said = repo.dvc("repro", next(path.name for path in repo.root.glob("store/teach-*")))
    assert ran(said) == ["stagedkd-guard", "prepare", "weaken", "teach"] and said.count("nothing to do") == 3
    (repo.root / "dvc.lock").unlink()
    assert "note" not in repo.stagedkd("run", "specs/small.yaml").replace("note: the teacher", "")
    known = yaml.safe_load(repo.lock)["stages"]
    assert known.keys() == yaml.safe_load((repo.root / "dvc.yaml").read_text("utf-8"))["stages"].keys()
    before = repo.lock
    assert repo.repro() == [] and repo.lock == before
    assert files_of(repo.root / "store") == files_of(made.root / "store")  # run and repro give the same bits


def test_a_changed_rate_runs_the_students_stages_and_going_back_none(copied: Callable[[], Repo]) -> None:
    repo = copied()
    mine = "  mine:\n    cmd: cat params.yaml > copy.txt\n    outs: [copy.txt]\n"
    (repo.root / "dvc.yaml").write_text((repo.root / "dvc.yaml").read_text("utf-8") + mine, "utf-8")
    repo.write("specs/small.yaml", OTHER)
    said = repo.dvc("repro", "report-small", code=255)
    assert ran(said) == ["stagedkd-guard"] and "help: run: stagedkd dvc sync" in said
    old = next(name for name in yaml.safe_load(repo.lock)["stages"] if name.startswith("distill"))
    assert "dvc.yaml does not match the specs" in repo.stagedkd("stage", old, code=2)
    repo.stagedkd("dvc", "sync")
    assert repo.repro() == ["distill", "evaluate", "report-small", "mine"]
    student = (repo.root / "results/small/student.safetensors").read_bytes()
    changed = json.loads(repo.dvc("params", "diff", "--json"))
    assert changed == {"specs/small.yaml": {"student.train.lr": {"old": None, "new": 0.02}}}
    assert "student.ece" in json.loads(repo.dvc("metrics", "diff", "--json"))["results/small/summary.json"]
    known = yaml.safe_load(repo.lock)["stages"]
    assert old not in known and "mine" in known and mine in (repo.root / "dvc.yaml").read_text("utf-8")
    repo.write("specs/small.yaml", SPEC)
    said = repo.stagedkd("dvc", "sync")
    assert "committed to DVC 2 stages that the store has" in said
    assert repo.repro() == [] and repo.repro() == []
    assert (repo.root / "results/small/student.safetensors").read_bytes() != student
    metrics = json.loads((repo.root / "results/small/metrics.json").read_text("utf-8"))
    assert old.endswith(Key(metrics["student"]["key"]).short)  # DVC put back the report that belongs to it


def test_one_call_tells_dvc_of_ours_and_not_of_a_changed_stage_of_the_user(copied: Callable[[], Repo]) -> None:
    repo = copied()
    mine = "  mine:\n    cmd: cat params.yaml > copy.txt\n    deps: [params.yaml]\n    outs: [copy.txt]\n"
    (repo.root / "dvc.yaml").write_text((repo.root / "dvc.yaml").read_text("utf-8") + mine, "utf-8")
    repo.dvc("repro", "mine")
    before = yaml.safe_load(repo.lock)["stages"]
    (repo.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"mine": before["mine"]}}), "utf-8")
    repo.write("params.yaml", (repo.root / "params.yaml").read_text("utf-8") + "# changed\n")
    assert "committed to DVC 6 stages that the store has" in repo.stagedkd("dvc", "sync")
    after = yaml.safe_load(repo.lock)["stages"]
    assert after == {name: entry for name, entry in before.items() if name != "report-small"}
    assert "mine" in repo.dvc("status", "mine")  # it is still to run
    assert not (repo.root / "stagedkd-commit").exists()


def test_push_clone_pull_repro_runs_nothing_and_has_the_same_bits(copied: Callable[[], Repo], tmp_path: Path) -> None:
    repo = copied()
    repo.dvc("remote", "add", "-d", "there", str(tmp_path / "remote"))
    repo.dvc("push", "-q")
    repo.commit()
    clone = repo.clone(tmp_path / "clone")
    assert not (clone.root / "store").exists()
    clone.dvc("pull", "-q")
    before = clone.lock
    assert clone.repro() == [] and clone.lock == before
    assert files_of(clone.root / "store") == files_of(repo.root / "store")
    assert file_bytes(clone.root / "results") == file_bytes(repo.root / "results")
    assert not list(clone.root.glob("store/*/run.json"))
    assert "nothing to do" in clone.stagedkd("run", "specs/small.yaml")
    assert clone.repro() == [] and clone.lock == before and not clone.call("git", "status", "--short")


def test_a_killed_dvc_leaves_no_second_trainer(copied: Callable[[], Repo], tmp_path: Path) -> None:
    repo = copied()
    longer = SPEC.replace("labels: all, epochs: 2", "labels: all, epochs: 80")
    repo.write("specs/small.yaml", longer)
    repo.stagedkd("dvc", "sync")
    stages = yaml.safe_load((repo.root / "dvc.yaml").read_text("utf-8"))["stages"]
    teacher = next(name for name in stages if name.startswith("teach-"))
    shutil.copytree(repo.root, tmp_path / "whole")
    command = [sys.executable, "-m", "dvc", "repro", teacher]
    first = subprocess.Popen(
        command, cwd=repo.root, env=environment(repo.root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(repo.root.glob("store/.work/teach-*/events.jsonl")):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (repo.root / "store" / teacher).exists()  # its child trains on, alone
    said = repo.dvc("repro", teacher)
    assert ran(said) == ["teach"] and "waiting for it" in said
    events = [
        json.loads(line) for line in (repo.root / "store" / teacher / "events.jsonl").read_text("utf-8").splitlines()
    ]
    assert {event["event"] for event in events} == {"epoch", "validation"}  # none resumed
    for kind, epochs in (("epoch", range(1, 81)), ("validation", range(2, 81, 2))):  # 8 clips for epochs of 16
        assert [event["epoch"] for event in events if event["event"] == kind] == list(epochs)  # each once
    whole = Repo(tmp_path / "whole")
    whole.stagedkd("stage", teacher)
    assert file_bytes(repo.root / "store" / teacher / "files") == file_bytes(whole.root / "store" / teacher / "files")
    assert "didn't change" in repo.dvc("repro", teacher)
