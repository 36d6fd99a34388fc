"""Losses on logits and labels in a training: the terms of a step, memories and averages over a stop, weights of clips,
keys, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.mix import Batch, strong_view
from stagedkd.data.views import fit_input
from stagedkd.errors import DataError, LockError, SpecError, UsageError
from stagedkd.files import FileBytes
from stagedkd.models.network import POSITIONS, Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.graph import Plan
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.load import load_spec
from stagedkd.spec.schema import Losses, Train
from stagedkd.stages.clip_weights import read_weights
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.clip_weights import GuideLogits, certainty, clip_weights, probabilities
from stagedkd.train.compute import train_flops
from stagedkd.train.exits import Average, ResponseModules
from stagedkd.train.guides import LiveGuide
from stagedkd.train.job import Job
from stagedkd.train.loop import fit
from stagedkd.train.phases import plan_forward, set_modes
from stagedkd.train.step import DistillOptions, StepInfo, StepModel, StepModels
from stagedkd.train.terms import step_losses
from tests.test_train import CPU, CUT, job, networks, phase

CHANNELS = {0: 4, 1: 8, 2: 16}
ALL = {
    "elr": {"weigh": "confidence"},
    "mean_teacher": {"weight": 8.0, "decay": 0.9},
    "ofa": {"gamma": 1.2, "weigh": {"file": "w.csv"}},
    "sdd": {"weigh": "entropy", "standardise": True},
}


def named(**values: object) -> Losses:
    return Losses.model_validate(values)


def last_weight(network: Network) -> Tensor:
    return dict(network.named_parameters())["net.fc.weight"]


def step(
    work: PhaseWork, batch: Batch, tables: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], StepModels]:
    """The terms of a step, and the models that it ran; nothing is in train mode but the modules of the losses."""
    torch.manual_seed(0)
    student, teacher = networks()
    responses = ResponseModules((work,), CHANNELS, 4, 24, student.eval())
    models = StepModels(
        StepModel(student.run),
        (LiveGuide(teacher.run, weight=2.0), LiveGuide(networks()[1].run)),
        FeatureAdapters(responses=responses).eval(),
        CPU,
        DistillOptions(seed=11),
        clip_weights=tables or {},
    )
    with torch.no_grad():
        last_weight(student).mul_(3)  # the average is another network than the student
        return step_losses(models, work, plan_forward(work, CUT, CUT), batch, StepInfo(phase=1, step=5)), models


def batch_of(mixed: bool = False) -> Batch:
    clip = torch.rand(6, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    labels, rows = torch.tensor([0, 1, -1, 2, 3, -1]), torch.tensor([3, 9, 4, 0, 20, 7])
    order = torch.tensor([3, 0, 4, 1, 5, 2]) if mixed else None
    return Batch(clip, labels, rows, order_B=order, fraction=0.7 if mixed else 1.0)


def run_by(models: StepModels, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of the student and of its first guide."""
    view = fit_input(batch.clip_B3THW, None)
    guide = models.guides[0]
    assert isinstance(guide, LiveGuide)
    (_, student), (_, teacher) = models.student.run(view), guide.run(view)
    assert student is not None and teacher is not None
    return student, teacher


# ---------------------------------------------------------------- the terms of a step, by formula


@torch.no_grad()
def test_clips_are_weighed_by_confidence_entropy_or_a_table() -> None:
    table = torch.linspace(0, 2, 24)
    batch = batch_of()
    values = {"ce": {"weigh": "confidence"}, "kd": {"weigh": "confidence"}, "wttm": {"weigh": "entropy"}}
    values |= {"gce": {"weigh": {"file": "w.csv"}}, "dkd": {"weigh": {"file": "w.csv"}, "standardise": True}}
    parts, models = step(phase(losses=named(**values)), batch, {"w.csv": table})
    student, teacher = run_by(models, batch)
    p = teacher.softmax(1)
    entropy = -(p * p.log()).sum(1) / np.log(4)
    of_label = torch.stack([row[max(y, 0)] for row, y in zip(p, batch.labels_B.tolist(), strict=True)])
    of_clip = table[batch.rows_B]
    scaled = (losses.standardise(student), losses.standardise(teacher), batch.labels_B)

    def mean(each: list[Tensor], weights: Tensor, clips: list[int]) -> float:
        return float(sum(weights[i] * each[i] for i in clips) / sum(weights[i] for i in clips))

    known, all_, one = [0, 1, 3, 4], list(range(6)), [slice(i, i + 1) for i in range(6)]
    expected = {
        "ce": mean([losses.ce(student[i], batch.labels_B[i]) for i in one], of_label, known),
        "kd": mean([losses.kd(student[i], teacher[i]) for i in one], p.max(1).values, all_),
        "wttm": mean([losses.wttm(student[i], teacher[i]) for i in one], 1 - entropy, all_),
        "gce": mean([losses.gce(student[i], batch.labels_B[i]) for i in one], of_clip, known),
        "dkd": mean([losses.dkd(scaled[0][i], scaled[1][i], scaled[2][i]) for i in one], of_clip, all_),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4), name


@torch.no_grad()
def test_weights_of_a_mixed_batch() -> None:
    table, batch = torch.linspace(0, 2, 24), batch_of(mixed=True)
    weigh = {"weigh": {"file": "w.csv"}}
    parts, models = step(phase(losses=named(ce=weigh, sce={"weigh": "confidence"}, kd=weigh)), batch, {"w.csv": table})
    student, teacher = run_by(models, batch)
    assert batch.order_B is not None
    mine, theirs = table[batch.rows_B], table[batch.rows_B][batch.order_B]
    labels, others, p = batch.labels_B, batch.labels_B[batch.order_B], teacher.softmax(1)
    sure = [p.gather(1, y.clamp(min=0)[:, None])[:, 0] for y in (labels, others)]
    expected = {
        "ce": 0.7 * losses.ce(student, labels, weights_B=mine) + 0.3 * losses.ce(student, others, weights_B=theirs),
        "sce": 0.7 * losses.sce(student, labels, weights_B=sure[0])
        + 0.3 * losses.sce(student, others, weights_B=sure[1]),
        "kd": losses.kd(student, teacher, weights_B=0.7 * mine + 0.3 * theirs),
    }
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-4), name


@torch.no_grad()
def test_exits_positions_and_the_average_in_a_step() -> None:
    batch = batch_of()
    work = phase(losses=named(sdd={"standardise": True}, ofa={"gamma": 1.2, "exits": 0.5}, mean_teacher=1, fixmatch=1))
    parts, models = step(work, batch)
    student, teacher = run_by(models, batch)
    view = fit_input(batch.clip_B3THW, None)
    maps, _ = models.student.run(view, taps=("layer1", "layer2", "layer3"))
    exits = [models.adapters.responses.exits[str(k)](maps[f"layer{k + 1}"]) for k in range(3)]
    guide = models.guides[0]
    assert isinstance(guide, LiveGuide)
    positions = [run(view, taps=(POSITIONS,))[0][POSITIONS] for run in (models.student.run, guide.run)]
    strong = models.student.run(fit_input(strong_view(batch.clip_B3THW, 11, 1, 5), None))[1]
    average = models.adapters.responses.average(view)
    assert strong is not None and not torch.allclose(average, student)
    expected = {
        "fixmatch": losses.fixmatch(strong, student),
        "mean_teacher": losses.mean_teacher(strong, average),
        "sdd": losses.sdd(positions[0], positions[1], batch.labels_B, standardised=True),
        "ofa": losses.ofa(student, teacher, batch.labels_B, exits, gamma=1.2, exits=0.5),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-4), name


def test_several_guides_weigh_clips_by_their_mean_probabilities() -> None:
    batch, dice = batch_of(), torch.Generator().manual_seed(3)
    one, other = torch.randn(6, 4, generator=dice), torch.randn(6, 4, generator=dice)
    guides = [GuideLogits(one, 2.0), GuideLogits(other, 1.0)]
    p = (2 * one.softmax(1) + other.softmax(1)) / 3
    assert torch.allclose(probabilities(guides), p)
    kd = named(kd={"weigh": "confidence"}).kd
    assert kd is not None
    found = clip_weights(kd, batch, guides, {})
    assert found is not None and torch.allclose(found, p.max(1).values)


def test_certainty_is_one_for_one_hot_and_zero_for_equal_probabilities() -> None:
    p = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    assert certainty(p).tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert certainty(torch.ones(2, 1)).tolist() == [1, 1]


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("arch", ["resnet3d", "tsm", "r3d_18", pytest.param("swin3d_t", marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_mean_over_positions_is_the_networks_logits(arch: str) -> None:
    from stagedkd.models.torchvision_video import torchvision_video
    from stagedkd.models.tsm import tsm

    torch.manual_seed(0)
    plain = {"resnet3d": lambda: resnet3d(4, (1, 1), "full", 5), "tsm": lambda: tsm("resnet18", 0.125, 5)}
    network = plain.get(arch, lambda: torchvision_video(arch, 5))().eval()
    maps, logits = network.run(torch.randn(2, 3, 4, 64, 64), taps=(POSITIONS,))
    assert logits is not None and maps[POSITIONS].shape[:2] == (2, 5) and maps[POSITIONS][0, 0].numel() > 1
    assert torch.allclose(maps[POSITIONS].mean((2, 3, 4)), logits, atol=1e-5)


def test_a_head_that_is_not_linear_has_no_positions() -> None:
    from stagedkd.models.tsm import tsm

    with pytest.raises(ValueError, match="positions have no logits"):
        tsm("mobilenet_v3_small", 0.125, 5).eval().run(torch.zeros(1, 3, 2, 32, 32), taps=(POSITIONS,))


def test_a_plan_knows_the_heads_of_all_families() -> None:
    """The fact of the spec is that of the built network."""
    from stagedkd.models.build import build
    from stagedkd.spec.schema.networks import Resnet3dArch, TorchvisionArch, TsmArch

    archs = [Resnet3dArch(arch="resnet3d", width=4)]
    archs += [TorchvisionArch.model_validate({"arch": a}) for a in ("r3d_18", "s3d", "mvit_v1_b", "swin3d_t")]
    archs += [TsmArch.model_validate({"arch": "tsm", "backbone": b}) for b in ("resnet18", "mobilenet_v2")]
    for arch in archs:
        with torch.device("meta"):
            network = build(arch, 5, root=Path())
        assert (network.anatomy.positions is not None) == arch.linear_head, arch


# ---------------------------------------------------------------- memories and averages


def made(folder: Path, phases: tuple[PhaseWork, ...], **fields: object) -> Job:
    torch.manual_seed(3)
    work = job(folder, phases, **fields)
    adapters = FeatureAdapters(responses=ResponseModules(phases, CHANNELS, 4, 24, work.student))
    return replace(work, adapters=adapters, clip_weights={"w.csv": torch.linspace(0, 2, 24)})


def test_stopping_and_going_on_brings_memories_exits_and_averages_back_to_the_bit(tmp_path: Path) -> None:
    phases = (phase(epochs=2, losses=named(**ALL)), phase(name="q", epochs=2, losses=named(**ALL)))
    whole = made(tmp_path / "whole", phases)
    fit(whole)
    signals = iter([None] * 7 + [15])
    with pytest.raises(Exception, match="checkpoint written"):
        fit(made(tmp_path / "parts", phases, interrupted=lambda: next(signals)))
    second = made(tmp_path / "parts", phases)
    fit(second)
    for name, tensor in [*whole.student.net.state_dict().items(), *whole.adapters.state_dict().items()]:
        again = {**second.student.net.state_dict(), **second.adapters.state_dict()}[name]
        assert torch.equal(tensor, again), name
    memory = whole.adapters.responses.memories["elr"].targets
    assert isinstance(memory, Tensor)
    assert memory[:12].any(1).all() and not memory[12:].any()  # of the labelled clips alone
    assert whole.adapters.state_dict()["responses.averages.student.steps"] == 12


@pytest.mark.parametrize("name", ["gce", "sce", "elr", "mean_teacher", "wttm", "mlld", "sdd", "ofa"])
def test_every_loss_trains_a_student(tmp_path: Path, name: str) -> None:
    """Declared by its name alone, or with `ce`: the loss falls."""
    values = {name: 1.0} if name != "mean_teacher" else {"ce": 1.0, name: 8.0}
    phases = (phase(losses=named(**values)), phase(name="q", epochs=8, losses=named(**values)))
    at = fit(made(tmp_path, phases))
    if name == "mean_teacher":
        assert 0 < at.last["q"][name] < 0.1 and at.last["q"]["ce"] < at.last["p"]["ce"]
    else:
        assert at.last["q"][name] < at.last["p"][name]


def test_the_average_is_tarvainen_and_valpolas(tmp_path: Path) -> None:
    """It copies the student in its first step, then keeps min(decay, 1 - 1 / (k + 1)); buffers are copied."""
    student, _ = networks()
    average, dice = Average(student), torch.Generator().manual_seed(0)
    mean: Tensor | None = None
    for k in range(20):
        with torch.no_grad():
            weight, buffer = last_weight(student), next(student.buffers())
            weight.add_(torch.randn(weight.shape, generator=dice))
            buffer.add_(1)
        average.follow(student, 0.9)
        kept = min(0.9, 1 - 1 / (k + 1))
        mean = weight.detach().clone() if mean is None else kept * mean + (1 - kept) * weight.detach()
    assert mean is not None
    assert torch.allclose(last_weight(average.network), mean, atol=1e-5)
    assert torch.equal(next(average.network.buffers()), next(student.buffers()))


def test_the_average_is_neither_trained_nor_shipped(tmp_path: Path) -> None:
    work = made(tmp_path, (phase(losses=named(mean_teacher=1.0, ofa=1.0)),))
    names = set(work.student.net.state_dict())
    set_modes(work.student, work.adapters, work.phases[0], CUT)
    average = work.adapters.responses.average
    assert isinstance(average, Network) and not any(m.training for m in average.modules())
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in work.adapters.responses.exits.parameters())
    fit(work)
    assert set(work.student.net.state_dict()) == names


def test_losses_on_given_labels_alone_cycle_through_the_labelled_clips(tmp_path: Path) -> None:
    for values, alone in (({"gce": 1.0}, True), ({"elr": 1.0, "ce": 0.1}, True), ({"gce": 1.0, "kd": 1.0}, False)):
        work = job(tmp_path, (phase(losses=named(**values)),))
        picked = [work.feed.pick(work.phases[0], 0, i).labels for i in range(3)]
        assert (np.concatenate(picked) >= 0).all() == alone


def test_the_compute_of_a_second_view_and_of_the_average() -> None:
    from stagedkd.models.shapes import measure

    shape = measure(lambda: resnet3d(4, (1, 1, 1), "full", 4), 4, 16)
    ce, mean, both = (
        train_flops(work, plan_forward(work, CUT, CUT), 1, shape, (), CUT)
        for work in (
            phase(losses=named(ce=1)),
            phase(losses=named(ce=1, mean_teacher=1)),
            phase(losses=named(ce=1, mean_teacher=1, fixmatch=1)),
        )
    )
    assert mean == both == 2 * ce + shape.flops * 8  # a batch of 8 clips


# ---------------------------------------------------------------- keys, tables and what is refused


def tiny(*overrides: str) -> Plan:
    return compile_plan(load_spec("specs/tiny.yaml", ["cascade=[]", *overrides]))


def test_keys_follow_the_content_of_a_table_and_not_its_name(project: Path) -> None:
    (project / "w.csv").write_text("path,weight\nshapes:0,1\n", "utf-8")
    weigh = "distill.phases.joint.losses.kd.weigh={{file: {}}}"
    key = tiny(weigh.format("w.csv")).stage("student").key
    (project / "other.csv").write_text("path,weight\nshapes:0,1\n", "utf-8")
    assert tiny(weigh.format("other.csv")).stage("student").key == key != tiny().stage("student").key
    (project / "w.csv").write_text("path,weight\nshapes:0,2\n", "utf-8")
    assert tiny(weigh.format("w.csv")).stage("student").key != key
    switched, off = (tiny(f"distill.phases.joint.losses.kd.standardise={word}") for word in ("true", "false"))
    assert off.stage("student").key == tiny().stage("student").key != switched.stage("student").key


CLIP_NAMES = ("a.mp4", "b.mp4", "c.mp4")


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        ("a.mp4,1\nb.mp5,1\n", r"w.csv:3: there is no clip 'b.mp5' in the data", "did you mean 'b.mp4'?"),
        ("zzzzzzzzzz,1\n", r"w.csv:2: there is no clip 'zzzzzzzzzz' in the data", "by their path, such as a.mp4"),
        ("a.mp4,1\na.mp4,1\n", r"w.csv:3: 'a.mp4' is also in line 2", "keep one of the lines"),
        ("a.mp4,-1\n", r"w.csv:2: '-1' is no weight", "a weight is a number of 0 or more"),
        ("a.mp4,nan\n", r"w.csv:2: 'nan' is no weight", "a weight is a number of 0 or more"),
        ("a.mp4,much\n", r"w.csv:2: 'much' is no weight", "a weight is a number of 0 or more"),
        ("a.mp4,1,2\n", r"w.csv:2: the row has 3 cells, more than the header (2)", "put a cell"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(tmp_path: Path, rows: str, message: str, hint: str) -> None:
    (tmp_path / "w.csv").write_text(f"path,weight\n{rows}", "utf-8")
    with pytest.raises(DataError) as caught:
        read_weights(FileBytes.read(tmp_path / "w.csv"), CLIP_NAMES)
    assert message in caught.value.message and hint in caught.value.hint, (caught.value.message, caught.value.hint)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("clip,weight\na.mp4,1\n", "utf-8")
    with pytest.raises(DataError, match=r"w.csv:1: columns path, weight are needed"):
        read_weights(FileBytes.read(tmp_path / "w.csv"), CLIP_NAMES)


JOINT = "distill.phases.joint.losses"
R3D = "{arch: resnet3d, width: 4, blocks: [1, 1]}"


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (
            [f"{JOINT}.dist={{weigh: entropy}}"],
            "'dist' cannot weigh clips: its gamma term correlates the clips of a batch; gamma: 0 leaves it out",
            "remove weigh",
        ),
        (
            [f"{JOINT}.mlld={{weigh: confidence, classes: 0}}"],
            "'mlld' cannot weigh clips: two of its levels compare clips of a batch; batches: 0 and classes: 0 leave "
            "them out",
            "remove weigh",
        ),
        (
            [f"{JOINT}.elr=1", "augment.mixup=0.4"],
            "'elr' remembers what the student says of each clip, and a mixed clip is two",
            "set augment.mixup and augment.cutmix to 0",
        ),
        (
            [f"{JOINT}.sdd=1", "teacher={$replace: {arch: s3d, epochs: 1}}", "clip={frames: 8, size: 32}"],
            "'sdd' needs the logits of regions, so the head must be the mean over the last map and a linear layer; that "
            "of s3d is not",
            "use resnet3d, r3d_18, mc3_18, r2plus1d_18, swin3d_* or tsm on a resnet; or another loss, such as kd",
        ),
        (
            [f"{JOINT}.kd.weigh={{file: absent.csv}}"],
            "absent.csv is not a file in the project",
            "give the path of a table in the project",
        ),
        (
            [f"{JOINT}.kd.weigh={{file: w.csv, digest: abc}}"],
            "'digest' cannot be set: stagedkd sets it",
            "remove it",
        ),
        (
            [f"{JOINT}.kd.weigh=trust"],
            f"'{JOINT}.kd.weigh' must be confidence or entropy, not 'trust'",
            "",
        ),
        ([f"{JOINT}.sdd={{alpha: 1}}"], "alpha and beta must be set together, for example {alpha: 1, beta: 8}", ""),
        ([f"{JOINT}.hint={{weigh: entropy}}"], f"unknown key '{JOINT}.hint.weigh'", ""),
        (
            ["labels={$replace: {clean: 0}}", "control=null", f"{JOINT}={{$replace: {{gce: 1, kd: 1}}}}"],
            "'gce' has no labels: labels.clean and labels.noisy are 0",
            "raise labels.clean, or remove gce",
        ),
    ],
)
def test_what_cannot_be_is_refused(project: Path, overrides: list[str], message: str, hint: str) -> None:
    (project / "w.csv").write_text("path,weight\n", "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["cascade=[]", *overrides])
    found = {problem.message: problem.hint for problem in caught.value.problems}
    fitting = [text for text in found if message in text]
    assert fitting, found
    assert hint in found[fitting[0]]


def test_an_own_network_without_substages_has_no_exits(project: Path) -> None:
    (project / "net.py").write_text("def build(classes): ...\n", "utf-8")
    own = "student={$replace: {arch: file, path: net.py, epochs: 1}}"
    phases = "distill={$replace: {phases: {joint: {losses: {ofa: 1}}}}}"
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["cascade=[]", own, phases])
    (problem,) = caught.value.problems
    assert problem.message == "'ofa' puts an exit behind each substage, but net.py declares none"
    assert problem.hint == "add student.substages"


def test_weights_by_the_teacher_need_it_in_a_phase_of_ce_alone(project: Path) -> None:
    work = phase(losses=named(ce={"weigh": "entropy"}))
    plan = plan_forward(work, CUT, CUT)
    assert plan.needs_teacher and plan.needs_teacher_logits and work.losses.needs_guide_logits
    assert not plan_forward(phase(losses=named(ce=1.0), train=Train(batch=8)), CUT, CUT).needs_teacher


def test_a_warm_up_can_be_a_share_of_the_phase() -> None:
    from stagedkd.spec.schema import Kd
    from stagedkd.train.schedule import loss_weight

    kd = Kd.model_validate({"weight": 2.0, "warmup_share": 0.25})
    assert [loss_weight(kd, at, 40) for at in (0, 5, 10, 40)] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="warmup_epochs and warmup_share say the same: keep one of them"):
        Kd.model_validate({"warmup_epochs": 2.0, "warmup_share": 0.25})


@pytest.mark.slow
def test_a_run_with_a_table_its_gaps_and_its_reproduction(project: Path) -> None:
    """A clip without a weight is named; a run with the table ends; a reproduction wants the same table."""
    from stagedkd.experiment.reproduce import check_files
    from stagedkd.experiment.run import run
    from stagedkd.plan.runtime import load_runtime

    overrides = ["cascade=[]", "control=null", f"{JOINT}.kd={{weigh: {{file: w.csv}}}}"]
    spec = load_spec("specs/tiny.yaml", overrides[:2])
    kind, count = spec.data.kind, int(getattr(spec.data, "train", 0))
    rows = [f"{kind}:{i},{i % 3}" for i in range(count)]
    (project / "w.csv").write_text("\n".join(["path,weight", *rows[:-2]]) + "\n", "utf-8")
    with pytest.raises(DataError, match=rf"w.csv has no weight for the training clip {kind}:{count - 2} and 1 more"):
        run(load_spec("specs/tiny.yaml", overrides))
    (project / "w.csv").write_text("\n".join(["path,weight", *(f"{kind}:{i},0" for i in range(count))]) + "\n", "utf-8")
    with pytest.raises(DataError, match="all training clips weigh 0"):
        run(load_spec("specs/tiny.yaml", overrides))
    (project / "w.csv").write_text("\n".join(["path,weight", *rows]) + "\n", "utf-8")
    outcome = run(load_spec("specs/tiny.yaml", overrides))
    assert outcome.artifacts["student"].manifest.metrics["losses"]["joint"]["kd"] > 0
    graph, runtime = compile_plan(load_spec("specs/tiny.yaml", overrides)), load_runtime(project)
    check_files(graph, runtime)
    (project / "w.csv").write_text("path,weight\n", "utf-8")
    with pytest.raises(LockError, match=r"w.csv differs from the file of the original"):
        check_files(graph, runtime)
    (project / "w.csv").unlink()
    with pytest.raises(UsageError, match=r"your table w.csv is missing"):
        check_files(graph, runtime)
