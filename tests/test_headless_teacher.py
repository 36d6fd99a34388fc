"""Teachers that are weights without a head, and teachers of which the head alone is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagedkd import load_spec
from stagedkd.errors import SpecError
from stagedkd.models.resnet3d import resnet3d
from stagedkd.models.shapes import measure
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import TeachWork
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.compute import train_flops
from stagedkd.train.phases import plan_forward, set_modes
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


@pytest.mark.slow
def test_of_a_linear_probe_the_head_alone_changes(stagedkd: Command, project: Path, weights: Path) -> None:
    text = SPEC.replace("epochs: 0", "epochs: 2, trains: head").replace("hint: 1.0", "kd: 1.0")
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    code, said = text_of(stagedkd, "run", "specs/tiny.yaml", "--no-dvc")
    assert code == 0, said
    assert "the teacher comes from w.safetensors and its head alone is trained here" in said
    (made,) = project.glob("store/teach-*/**/teacher.safetensors")
    before, after = load_file(weights), load_file(made)
    changed = {name for name in after if before[name].shape != after[name].shape or not before[name].equal(after[name])}
    assert changed == {"fc.weight", "fc.bias"}  # so no statistics of BatchNorm, either
    assert after["fc.weight"].std() > 0


def test_a_probe_has_the_phase_of_a_head(project: Path, weights: Path) -> None:
    text = SPEC.replace("epochs: 0", "epochs: 2, trains: head")
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    work = compile_plan(load_spec("specs/tiny.yaml")).stage("teacher").work
    assert isinstance(work, TeachWork) and work.phase is not None and work.phase.trained == ()
    network = resnet3d(4, (1, 1), "full", 4)
    set_modes(network, FeatureAdapters(), work.phase, ())
    trained = {name for name, parameter in network.net.named_parameters() if parameter.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}
    norms = [m for m in network.net.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert norms and not any(norm.training for norm in norms)
    shape = measure(lambda: resnet3d(4, (1, 1), "full", 4), 4, 16)
    head = shape.flops - sum(shape.block_flops.values())
    flops = train_flops(work.phase, plan_forward(work.phase, (), ()), 1, shape)
    assert flops == (shape.flops + 2 * head) * 2 * 8  # two epochs of one batch of 8


def test_a_probe_needs_weights_and_epochs(project: Path, weights: Path) -> None:
    for change, message in (
        (("epochs: 0", "epochs: 0, trains: head"), "a teacher of 0 epochs trains nothing, so no head either"),
        (
            ("epochs: 0, weights: w.safetensors", "epochs: 1, trains: head"),
            "the head alone is trained, so all blocks would stay random",
        ),
    ):
        (project / "specs" / "tiny.yaml").write_text(SPEC.replace(*change), "utf-8")
        with pytest.raises(SpecError) as caught:
            load_spec("specs/tiny.yaml")
        assert [p.message for p in caught.value.problems] == [message]
