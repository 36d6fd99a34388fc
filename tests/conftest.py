"""Shared fixtures. Every test runs torch on one thread, since two run at once, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("stagedkd", deadline=None)  # a busy machine is no fault
settings.load_profile("stagedkd")
os.environ["OMP_NUM_THREADS"] = "1"
REPO = Path(__file__).resolve().parent.parent
SPECS = sorted(path for path in (REPO / "specs").rglob("*.yaml") if not path.name.endswith(".tuned.yaml"))

TINY = """\
data: {kind: shapes, classes: 4, train: 48, val: 16, test: 16}
clip: {frames: 4, size: 16}
augment: {crop: 0.8, jitter: 0.1}
labels: {clean: 0.5, noisy: 0.25, noise: {kind: symmetric, rate: 0.5}}
train: {batch: 16, lr: 1e-2, warmup_epochs: 0.5}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 3}
cascade: [0.5]
student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0, hint: 0.1}}
    joint: {epochs: 2, train: {ema: 0.9}, losses: {ce: 0.1, kd: 0.9, sp: 10}}
control: ce
"""

PARAMS = "runtime: {device: cpu, threads: 1, checkpoint_seconds: 0, print_plots: false}\n"

# A student with dropout, so that a resumed run must restore the random state, too.
OWN_NET = """\
import torch
from torch import nn


def build(classes, width=6):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, width, 3, (1, 2, 2), 1), nn.BatchNorm3d(width), nn.ReLU()))
    net.add_module("mid", nn.Sequential(nn.Dropout(0.3), nn.Conv3d(width, width, 3, 2, 1), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, classes)))
    return net
"""


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a tiny spec, as working folder."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "tiny.yaml").write_text(TINY, "utf-8")
    (tmp_path / "params.yaml").write_text(PARAMS, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAGEDKD_DATA", raising=False)
    return tmp_path


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stagedkd(project: Path) -> Command:
    """Run the real command line in the project."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stagedkd.cli", *arguments]
        return subprocess.run(
            command, cwd=project, env=os.environ | environment, capture_output=True, text=True, timeout=900, check=False
        )

    return call


@pytest.fixture(scope="session")
def clips() -> Path:
    """Real clips for tests; STAGEDKD_TEST_DATA names their folder."""
    folder = Path(os.environ.get("STAGEDKD_TEST_DATA", REPO.parent / "shared" / "data"))
    if not (folder / "weizmann" / "clips.csv").is_file():
        pytest.skip(f"no test clips in {folder}: set STAGEDKD_TEST_DATA")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden values anew")
