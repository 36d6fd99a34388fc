"""What the findings about other software (findings/*.sh) mean for us: how our own code keeps out of their way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from stagedkd import load_spec
from stagedkd.errors import SpecError
from stagedkd.models.network import Anatomy, Network
from stagedkd.models.shapes import measure
from stagedkd.train.evaluate import expected_calibration_error
from tests.conftest import REPO, Command

FINDINGS = sorted((REPO / "findings").glob("*.sh"))


def test_every_finding_pins_its_packages_and_says_what_was_seen() -> None:
    assert FINDINGS
    for path in FINDINGS:
        text = path.read_text("utf-8")
        installs = [line for line in text.splitlines() if "pip" in line and "install" in line and "-q uv" not in line]
        assert installs and all("==" in line for line in installs), path.name
        assert "# Expected:" in text and "# Seen:" in text and "assert " in text, path.name
        assert "stagedkd" not in text and "://" not in text, path.name


class Tokens(nn.Module):
    """Frames as tokens: the fused operator of an attention layer would hide its FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(3 * 16 * 16, 4, 64, batch_first=True)

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.layer(clip_BCTHW.transpose(1, 2).flatten(2)).transpose(1, 2)[..., None, None]


def test_flops_of_attention_are_counted_though_networks_are_measured_in_eval_mode() -> None:
    """findings/flop_counter_fast_path.sh: the counter gives 0 on the CPU; on the meta device it is right."""

    def build() -> Network:
        net = nn.Sequential()
        net.add_module("tokens", Tokens())
        net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(768, 4)))
        return Network(net, Anatomy({"tokens": ("tokens",)}, ("head",), lambda net, x: net.get_submodule("head")(x)))

    tokens, width, hidden = 4, 768, 64
    projections = 2 * tokens * width * (4 * width) + 2 * tokens * 2 * width * hidden
    attention = 2 * 2 * tokens * tokens * width
    assert measure(build, frames=4, size=16).block_flops["tokens"] == projections + attention


def test_the_last_bin_of_calibration_holds_confidences_of_one() -> None:
    """findings/torchmetrics_calibration_bin_of_ones.sh: elsewhere they have a bin of their own."""
    right = np.array([True] * 40 + [False] * 10 + [True] * 50)
    for sure in (1.0, 1 - 1e-7):
        confidence = np.array([sure] * 50 + [0.97] * 50, np.float32)
        assert expected_calibration_error(confidence, right) == pytest.approx(0.085, abs=1e-5)


@pytest.mark.slow
def test_weights_are_written_with_one_metadata_entry(stagedkd: Command, project: Path) -> None:
    """findings/safetensors_metadata_order.sh: with two entries equal networks would have unequal files."""
    found = stagedkd("run", "specs/tiny.yaml", "--set", "cascade=[]", "--set", "student.epochs=1", "--set", "recipe=ce")
    assert found.returncode == 0, found.stderr
    files = [*project.glob("store/*/files/*.safetensors"), *project.glob("results/*/*.safetensors")]
    assert len(files) >= 3
    for path in files:
        with safe_open(path, "pt") as weights:
            assert set(weights.metadata()) == {"stagedkd"}, path


@pytest.mark.parametrize("written", ["012", "0x1f", "1e1", "+5", "no", "12:30"])
def test_overrides_are_read_by_the_rules_of_the_file(project: Path, written: str) -> None:
    """findings/hydra_file_or_command_line.sh: elsewhere 012 is ten in a file and a word on the command line."""

    def seed(path: str, overrides: Sequence[str] = ()) -> int | str:
        try:
            return load_spec(path, overrides).seed
        except SpecError as error:
            return error.problems[0].message

    text = (project / "specs" / "tiny.yaml").read_text("utf-8")
    (project / "specs" / "other.yaml").write_text(text + f"seed: {written}\n", "utf-8")
    assert seed("specs/other.yaml") == seed("specs/tiny.yaml", [f"seed={written}"])
