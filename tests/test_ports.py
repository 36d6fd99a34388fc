"""No process of a run listens on an address that another machine can reach."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPO

NET = """\
from torch import nn


def build(classes, width=6):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, width, 3, (1, 2, 2), 1), nn.GroupNorm(2, width), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, classes)))
    return net
"""
SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
train: {batch: 16, lr: 1e-2, warmup_epochs: 0}
teacher: {arch: file, path: net.py, params: 9000, substages: [[stem]], epochs: 1}
student: {arch: file, path: net.py, params: 5000, substages: [[stem]]}
distill: {phases: {joint: {epochs: 1, losses: {kd: 1.0}}}}
"""
MODES = {"ranks": ("--gpus", "2"), "jobs": ("--jobs", "2"), "parsl": ("--engine", "parsl")}
OPEN = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"


def addresses_while(command: list[str], folder: Path) -> tuple[int, set[str]]:
    """Run a command. Returns its exit code, and the addresses on which it or a process below it was seen to listen."""
    process = psutil.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=subprocess.DEVNULL)
    found: set[str] = set()
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            connections = [each for one in family for each in one.net_connections("inet")]
        except psutil.Error:  # one has ended
            continue
        found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
        time.sleep(0.02)
    return process.returncode, found


def outside(addresses: set[str]) -> set[str]:
    """The addresses that other machines can reach."""
    plain = (ip_address(address.removeprefix("::ffff:")) for address in addresses)
    return {str(address) for address in plain if not address.is_loopback}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_mode_listens_on_an_outside_address(mode: str, tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "net.py").write_text(NET, "utf-8")
    (tmp_path / "specs" / "own.yaml").write_text(SPEC, "utf-8")
    (tmp_path / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    command = [sys.executable, "-P", "-m", "stagedkd.cli", "run", "specs/own.yaml", "-q", "--no-dvc", *MODES[mode]]
    code, addresses = addresses_while(command, tmp_path)
    print(f"{mode}: listened on {sorted(addresses) or 'no address'}")
    assert code == 0 and not outside(addresses)
    assert bool(addresses) == (mode != "jobs")  # jobs need no port; the others were looked at while they had one


def test_an_outside_address_would_be_seen(tmp_path: Path) -> None:
    code, addresses = addresses_while([sys.executable, "-c", OPEN], tmp_path)
    assert code == 0 and outside(addresses) == {"0.0.0.0"}
