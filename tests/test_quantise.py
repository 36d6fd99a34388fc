"""Fake quantisation: its numbers, where its quantisers go, its phase, and the exports of a student trained for int8."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from stagedkd import load_spec, report, run
from stagedkd.deploy.export.lower import to_operators, to_values
from stagedkd.deploy.export.write import Wish, export_student
from stagedkd.deploy.student import find_student, load_student
from stagedkd.errors import DataError, Interrupted, SpecError, TrainingError
from stagedkd.models.build import build
from stagedkd.models.network import Anatomy, Network
from stagedkd.models.quantise import (
    MOST,
    Quantiser,
    calibrate,
    holds_quantisers,
    own_weight,
    quantise,
    quantisers,
    rounded_weight,
    trace,
)
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Arch, Train
from stagedkd.train.loop import fit
from stagedkd.train.schedule import step_rate
from tests.test_train import job, phase

SPEC = """\
data: {kind: shapes, classes: 4, train: 64, val: 32, test: 8}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 16, lr: 1e-2}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 2}
student:
  arch: resnet3d
  width: 4
  blocks: [1, 1]
  substages: [[stem, layer1], [layer2]]
  epochs: 4
  quantise: {to: int8, epochs: 2}
control: ce
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0}}
    joint: {losses: {ce: 0.5, kd: 0.5, gaussian_w2: 0.1}}
"""
FAMILIES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"arch": "resnet3d", "width": 4, "blocks": (1, 1)}, (2, 3, 4, 16, 16)),
    ({"arch": "resnet3d", "width": 4, "blocks": (1, 2), "conv": "r2plus1d"}, (2, 3, 4, 16, 16)),
    ({"arch": "r3d_18"}, (2, 3, 4, 32, 32)),
    ({"arch": "tsm", "backbone": "mobilenet_v3_small"}, (2, 3, 4, 64, 64)),
    ({"arch": "tsm", "backbone": "resnet18"}, (2, 3, 4, 64, 64)),
    ({"arch": "s3d"}, (2, 3, 16, 64, 64)),
]


def load(tmp_path: Path, text: str = SPEC) -> Any:
    path = tmp_path / "specs" / "int8.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return load_spec(path)


def network(family: dict[str, Any], shape: tuple[int, ...]) -> tuple[Network, Tensor]:
    """A network in eval mode whose BatchNorms have seen clips, and clips."""
    torch.manual_seed(0)
    made = build(TypeAdapter[Arch](Arch).validate_python(family), 5, root=Path()).train()
    clip = torch.rand(*shape)
    with torch.no_grad():
        made(clip)
    return made.eval(), clip


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_quantiser_rounds_to_256_levels_with_an_exact_zero(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    quantiser = Quantiser()
    quantiser.seen = (0.0, 0.0)
    assert quantiser(values) is values  # it only looks
    quantiser.settle()
    low, high = min(0.0, *values.tolist()), max(0.0, *values.tolist())
    step = max((high - low) / 255, 1e-8)
    levels = np.clip(np.round(np.array(values, np.float64) / step) + round(-low / step), 0, 255)
    expected = (levels - round(-low / step)) * step
    assert np.abs(quantiser(values).numpy() - expected).max() <= 1.01 * step  # a tie may go the other way
    assert quantiser(torch.zeros(1)).item() == 0.0
    assert len(quantiser(torch.linspace(low, high, 3000)).unique()) <= 256


def test_weights_are_rounded_by_channel_and_gradients_pass() -> None:
    weight = torch.randn(3, 2, 3, 3, 3, requires_grad=True)
    rounded = rounded_weight(weight)
    for own, other in zip(weight.detach().double(), rounded.detach().double(), strict=True):
        step = float(own.abs().max()) / MOST
        assert (other / step - (other / step).round()).abs().max() < 1e-4 and (own - other).abs().max() <= 0.501 * step
    (rounded * torch.arange(rounded.numel()).view_as(rounded)).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad.flatten(), torch.arange(162.0))


@pytest.mark.parametrize(("family", "shape"), FAMILIES, ids=lambda x: str(x.get("arch")) if isinstance(x, dict) else "")
def test_families_round_all_their_weights_and_lower_to_the_same_numbers(
    family: dict[str, Any], shape: tuple[int, ...]
) -> None:
    made, clip = network(family, shape)
    weighty = sum(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) for m in made.modules())
    found = trace(made, clip)
    assert len(found.weighty) == weighty and len(found.ends) == weighty - sum(
        isinstance(m, nn.Linear) for m in made.modules()
    )
    quantise(made, clip)
    calibrate(made, [clip, 0.5 * clip])
    state = made.state_dict()
    assert holds_quantisers(state) and all(q.seen is None for q in quantisers(made))
    again = build(TypeAdapter[Arch](Arch).validate_python(family), 5, root=Path()).eval()
    quantise(again, clip)
    again.load_state_dict(state)
    with torch.no_grad():
        logits = made(clip)
        assert torch.equal(again(clip), logits) and torch.equal(copy.deepcopy(made)(clip), logits)
        to_values(again)
        assert (again(clip) - logits).abs().max() <= 1e-3 * logits.abs().max()
        to_operators(made, clip)
        assert (made(clip) - logits).abs().max() <= 0.05 * logits.abs().max()  # folding may turn a tie


def test_a_quantiser_stands_behind_convolution_norm_and_relu() -> None:
    made, clip = network(*FAMILIES[0])
    found = trace(made, clip)
    assert found.norms["stem.0"] == "stem.1" and found.ends["stem.0"] == "stem.2"
    assert found.ends["layer1.0.conv1"] == "layer1.0.relu1" and found.ends["layer1.0.conv2"] == "layer1.0.bn2"
    assert found.inputs[0] == "stem.0" and "layer1.0.conv2" not in found.inputs and "fc" in found.inputs


class _InPlace(nn.Module):
    """A residual block that adds in place, so that the sum is the same tensor as the BatchNorm's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv3d(3, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(inplace=True)

    def forward(self, clip: Tensor) -> Tensor:
        y = self.norm(self.conv(clip))
        y += clip
        return self.relu(y)


def test_a_sum_in_place_is_no_part_of_the_convolution() -> None:
    net = nn.Sequential()
    net.add_module("block", _InPlace())
    net.add_module("head", nn.Linear(3, 2))
    anatomy = Anatomy({"block": ("block",)}, ("head",), lambda net, x: net.get_submodule("head")(x.mean((2, 3, 4))))
    made = Network(net, anatomy).eval()
    found = trace(made, torch.rand(2, 3, 4, 8, 8))
    assert found.ends == {"block.conv": "block.norm"} and found.inputs == ["block.conv", "head"]


def test_a_network_without_weights_is_refused() -> None:
    net = nn.Sequential()
    net.add_module("pool", nn.AdaptiveAvgPool3d(1))
    net.add_module("head", nn.Flatten())
    made = Network(net, Anatomy({"pool": ("pool",)}, ("head",), lambda net, x: net.get_submodule("head")(x)))
    with pytest.raises(TrainingError, match="nothing to round"):
        quantise(made, torch.rand(2, 3, 4, 8, 8))


def test_the_phase_goes_on_with_the_last_one(tmp_path: Path) -> None:
    plan = compile_plan(load(tmp_path))
    phases = plan.stage("student").work.trainings
    assert [phase.name for phase in phases] == ["grow.1", "grow.2", "joint", "quantise"]
    joint, last = phases[-2:]
    assert last.losses == joint.losses and last.pairs == joint.pairs and last.quantised == "int8" and last.epochs == 2
    assert last.train.lr == pytest.approx(1e-3) and joint.train.lr == 1e-2 and last.train.precision == "fp32"
    assert plan.stage("control-ce").work.epochs_run == 6  # as long as the hop with its last phase
    assert any("computes in int8" in note for note in plan.notes)
    bare = compile_plan(load(tmp_path, SPEC.replace("{to: int8, epochs: 2}", "int8")))
    assert bare.stage("student").work.trainings[-1].epochs == 1


def test_the_key_of_a_float_student_does_not_know_of_int8(tmp_path: Path) -> None:
    with_it = compile_plan(load(tmp_path))
    without = compile_plan(load(tmp_path, SPEC.replace("  quantise: {to: int8, epochs: 2}\n", "")))
    assert with_it.stage("teacher").key == without.stage("teacher").key
    assert with_it.stage("student").key != without.stage("student").key


def test_assistants_stay_in_float32_and_a_schedule_over_the_hop_leaves_the_phase_alone(tmp_path: Path) -> None:
    text = SPEC.replace("control: ce", "control: ce\ncascade: [0.5]").replace(
        "lr: 1e-2}", "lr: 1e-2, schedule: {kind: cosine, over: hop}}"
    )
    plan = compile_plan(load(tmp_path, text))
    assert all(phase.quantised is None for phase in plan.stage("assistant-1").work.trainings)
    phases = plan.stage("student").work.trainings
    assert [phase.train.over_hop for phase in phases] == [True, True, True, False]
    assert step_rate(phases, 0, 0, 4) == pytest.approx(1e-2)
    assert step_rate(phases, 2, 7, 4) == pytest.approx(1e-2 * 0.5 * (1 + np.cos(np.pi * 15 / 16)))
    assert step_rate(phases, 3, 0, 4) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{to: int8, epochs: 2}", "int4", "int8"),
        ("{to: int8, epochs: 2}", "{to: int8, train: {precision: bf16}}", "computes in fp32"),
        ("{to: int8, epochs: 2}", "{to: int8, epochs: 2, train: {warmup_epochs: 2}}", "all warm-up"),
        ("    joint: ", "    quantise: ", "name of the phase that student.quantise adds"),
        (
            "gaussian_w2: 0.1}}",
            "gaussian_w2: 0.1}}\n    end: {substages: head, epochs: 1, losses: {ce: 1}}",
            "not train",
        ),
        (
            "control: ce",
            "cascade: [{arch: resnet3d, width: 6, blocks: [1, 1], quantise: int8}]",
            "only the student is quantised",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, SPEC.replace(old, new))
    assert says in str(caught.value)


def test_a_child_spec_may_name_the_word_or_the_map(tmp_path: Path) -> None:
    load(tmp_path, SPEC.replace("{to: int8, epochs: 2}", "int8"))
    child = tmp_path / "specs" / "child.yaml"
    child.write_text("extends: int8.yaml\nstudent: {quantise: {epochs: 3}}\n", "utf-8")
    quantised = load_spec(child).student.quantise
    assert quantised is not None and (quantised.to, quantised.epochs) == ("int8", 3)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    runtime = Runtime(root=str(folder), device="cpu", threads=1)
    report(run(load(folder), runtime).plan, runtime)
    return folder


@pytest.mark.slow
def test_a_run_predicts_and_exports_in_int8(project: Path) -> None:
    runtime = Runtime(root=str(project), device="cpu", threads=1)
    student = load_student(project / "results" / "int8")
    assert student.card.quantised == "int8" and quantisers(student.network)
    found, notes = find_student(project / "results" / "int8"), list[str]()
    for form, counts in (("onnx", {"Conv": 6}), ("openvino", {"Conv": 6, "MatMul": 1})):
        made = export_student(found, Wish(form), project / form, runtime, notes.append)
        assert made.int8 and made.operators.int8 == counts and made.compared is not None
        assert made.compared.agreement >= 0.95 and made.compared.clips == "32 validation clips"
        assert any("trained for int8" in note for note in notes)
    for form in ("pt2", "python"):
        made = export_student(found, Wish(form), project / form, runtime, notes.append)
        assert made.compared is not None and made.compared.difference < 1e-3


@pytest.mark.slow
def test_the_weights_are_those_of_the_evaluation(project: Path) -> None:
    student = load_student(project / "results" / "int8")
    state = student.network.net.state_dict()
    names = [name for name in state if "quantised_" in name]
    assert len(names) == 2 * len(quantisers(student.network)) and all(float(state[n]) != 1.0 for n in names[::2])
    module = student.network.net.get_submodule("stem.0")
    assert not torch.equal(own_weight(module), module.weight)  # type: ignore[arg-type]
    events = [
        json.loads(line)
        for path in project.glob("store/distill-*/**/events.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {event.get("phase") for event in events if event.get("event") == "epoch"} >= {"joint", "quantise"}


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_stopping_and_going_on_around_the_phase_changes_no_bit(tmp_path: Path, stop: int) -> None:
    train = Train(batch=8, lr=1e-2, ema=0.8)
    phases = (phase(name="joint", train=train), phase(name="quantise", epochs=2, train=train, quantised="int8"))
    whole = job(tmp_path / "whole", phases)
    fit(whole)
    signals = iter([None] * (stop - 1) + [15])
    with pytest.raises(Interrupted):
        fit(job(tmp_path / "parts", phases, interrupted=lambda: next(signals)))
    parts = job(tmp_path / "parts", phases)
    fit(parts)
    state = whole.student.net.state_dict()
    assert holds_quantisers(state)
    for name, tensor in parts.student.net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_phase_begins_with_the_average_and_moves_no_statistics(tmp_path: Path) -> None:
    train = Train(batch=8, lr=1e-2, ema=0.8)
    before = job(tmp_path / "before", (phase(name="joint", train=train),))
    fit(before)
    still = Train(batch=8, lr=1e-30, weight_decay=0.0)  # nothing moves but what should not
    after = job(tmp_path / "after", (phase(name="joint", train=train), phase(train=still, quantised="int8")))
    fit(after)
    state = after.student.net.state_dict()
    for name, tensor in before.student.net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.slow
def test_weights_in_int8_are_no_start_for_another_training(project: Path) -> None:
    (project / "int8.safetensors").write_bytes((project / "results/int8/student.safetensors").read_bytes())
    text = SPEC.replace("  quantise: {to: int8, epochs: 2}\n", "  weights: int8.safetensors\n")
    (path := project / "specs" / "again.yaml").write_text(text, "utf-8")
    runtime = Runtime(root=str(project), device="cpu", threads=1)
    with pytest.raises(DataError) as caught:
        run(load_spec(path), runtime)
    assert "take the weights of a run without student.quantise" in str(caught.value)
    assert "quantised_" not in str(caught.value)
