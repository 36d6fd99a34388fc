"""Two users of one group share a store: each runs, verifies, reports and collects garbage beside the other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

GROUP, USERS = 2100, {"one": 1001, "other": 1002}
SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 8}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 8, lr: RATE}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
distill: {phases: {joint: {losses: {ce: 0.5, kd: 0.5}}}}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of each user, and a store of their group. Pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "store").mkdir()
        os.chown(folder / "store", USERS["one"], GROUP)
        (folder / "store").chmod(0o2775)
        for user, rate in (("one", "1e-2"), ("other", "2e-2")):
            specs = folder / user / "specs"
            specs.mkdir(parents=True)
            (specs / "tiny.yaml").write_text(SPEC.replace("RATE", rate), "utf-8")
            (folder / user / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
            for path in (folder / user, specs, specs / "tiny.yaml", folder / user / "params.yaml"):
                os.chown(path, USERS[user], GROUP)
        yield folder


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be two users")
def test_two_users_share_a_store(place: Path) -> None:
    def call(user: str, *words: str) -> str:
        become = ("setpriv", f"--reuid={USERS[user]}", f"--regid={GROUP}", "--clear-groups")
        command = (*become, sys.executable, "-P", "-m", "stagedkd", *words, "--store", str(place / "store"))
        environment = {**os.environ, "HOME": str(place / user), "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=place / user, env=environment, capture_output=True, text=True, timeout=300, umask=0o002
        )
        assert done.returncode == 0, f"{user} {words}: {done.stderr}"
        return done.stdout + done.stderr

    run = ("run", "specs/tiny.yaml", "--no-dvc", "-q")
    call("one", *run)
    call("other", *run)  # takes the data and the labels of the first
    kinds = sorted(path.name.partition("-")[0] for path in (place / "store").iterdir() if not path.name.startswith("."))
    assert kinds.count("prepare") == 1 and kinds.count("teach") == kinds.count("distill") == 2
    for user in USERS:
        assert "intact" in call(user, "store", "verify")
        call(user, "report", "specs/tiny.yaml")
        assert "everything in the store is needed" in call(user, "store", "gc", "--yes")
        call(user, *run)
