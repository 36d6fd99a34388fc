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
from safetensors.torch import load_file

from stagedkd.errors import TrainingError
from stagedkd.train.ranks import Ranks, refuse_batch_statistics
from tests.shared_training import CASES, network, trained
from tests.tools import files_of

SCRIPT = Path(__file__).with_name("shared_training.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by two gloo ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.shared_training", str(folder)]
    root = SCRIPT.parent.parent
    both = [
        subprocess.Popen([*command, str(i), "2"], cwd=root, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, text=True)
        for i in (0, 1)
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
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
