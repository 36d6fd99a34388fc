"""Teachers that are weights without a head, and teachers of which the head alone is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stagedkd.models.resnet3d import resnet3d
from tests.conftest import Command

SPEC = """\
data: {kind: shapes, classes: 4, train: 16, val: 8, test: 8}
clip: {frames: 4, size: 16}
train: {batch: 8}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 0, weights: w.safetensors}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
distill:
  phases:
    joint: {losses: {ce: 1.0, hint: 1.0}}
"""


@pytest.fixture
def weights(project: Path) -> Path:
    """Weights for 7 classes, where the data has 4."""
    torch.manual_seed(0)
    net = resnet3d(4, (1, 1), "full", 7).net
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, project / "w.safetensors")
    (project / "specs" / "tiny.yaml").write_text(SPEC, "utf-8")
    return project / "w.safetensors"


def text_of(stagedkd: Command, *arguments: str) -> tuple[int, str]:
    done = stagedkd(*arguments)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_features_alone_need_no_head(stagedkd: Command, project: Path, weights: Path) -> None:
    code, text = text_of(stagedkd, "run", "specs/tiny.yaml", "--no-dvc")
    assert code == 0, text
    (metrics,) = project.glob("results/*/metrics.json")
    assert json.loads(metrics.read_text("utf-8"))["teacher"]["top1"] is None
    assert "the teacher has no accuracy" in (metrics.parent / "report.html").read_text("utf-8")
    code, text = text_of(stagedkd, "run", "specs/tiny.yaml", "--no-dvc", "--set", "distill.phases.joint.losses.kd=1.0")
    assert code != 0 and "Traceback" not in text  # the teacher is in the store, with the same key
    assert "a loss compares logits, but the teacher has no head for the classes: " in text


def test_logits_need_a_head(stagedkd: Command, project: Path, weights: Path) -> None:
    code, text = text_of(stagedkd, "run", "specs/tiny.yaml", "--no-dvc", "--set", "distill.phases.joint.losses.kd=1.0")
    assert code != 0 and "with epochs: 0 parts of the head would stay random" in text
