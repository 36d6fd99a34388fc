"""Grafting, and the embedding as a tap: against networks put together by hand."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from stagedkd import compile_plan, load_spec, losses
from stagedkd.data.mix import Batch
from stagedkd.data.views import fit_input
from stagedkd.errors import SpecError, TrainingError
from stagedkd.experiment.preflight import preflight
from stagedkd.models.build import build
from stagedkd.models.network import EMBEDDING
from stagedkd.models.shapes import measure
from stagedkd.report.phases import phase_lines
from stagedkd.spec.pairing import graft_pairs
from stagedkd.spec.schema import Losses
from stagedkd.spec.schema.networks import Resnet3dTeacher, TorchvisionTeacher
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.compute import train_flops
from stagedkd.train.graft_terms import drawn_graft
from stagedkd.train.guides import LiveGuide
from stagedkd.train.loop import fit
from stagedkd.train.phases import plan_forward
from stagedkd.train.step import DistillOptions, StepInfo, StepModel, StepModels
from stagedkd.train.terms import step_losses
from tests.conftest import REPO
from tests.test_train import CPU, CUT, PAIRS, job, networks, phase, teacher_of

CHANNELS = {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}


def grafting(draw: str, **others: object):
    """A phase that grafts, and the modules of a step in float64."""
    student, teacher = (network.double() for network in networks())
    for module in teacher.modules():  # statistics and scales that are not those of a new network
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    named = Losses.model_validate({"graft": {"temperature": 3.0, "draw": draw}, **others})
    work = phase(losses=named, pairs=PAIRS, head="kd" in others)
    adapters = FeatureAdapters("pairs", (work,), *CHANNELS, clips=6, widths=(16, 32)).double()
    guide = LiveGuide(teacher.run, run_from=teacher.run_from)
    models = StepModels(StepModel(student.run), (guide,), adapters, CPU, DistillOptions(seed=11))
    batch = Batch(torch.rand(6, 3, 4, 16, 16).double(), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    return student, teacher, work, models, batch


def by_hand(student, teacher, adapters, batch, k: int) -> torch.Tensor:
    """The grafted network's loss, module by module."""
    view = fit_input(batch.clip_B3THW, None)
    x = view
    for name in ("stem", "layer1", "layer2", "layer3")[: k + 2]:
        x = student.net.get_submodule(name)(x)
    x = F.relu(adapters.projectors[f"{k + 1}-{k + 1}"](x))
    for name in ("layer2", "layer3")[k:]:
        x = teacher.net.get_submodule(name)(x)
    grafted, target = teacher.net.get_submodule("fc")(x.mean((2, 3, 4))), teacher(view)
    p, log_q = (target / 3).softmax(1), (grafted / 3).log_softmax(1)
    return 9 * (p * (p.log() - log_q)).sum(1).mean()


@pytest.mark.parametrize("draw", ["one", "all"])
def test_graft_is_the_network_put_together_by_hand(draw: str) -> None:
    student, teacher, work, models, batch = grafting(draw)
    plan, adapters = plan_forward(work, CUT, CUT), models.adapters
    for step in range(3):
        with torch.no_grad():
            found = step_losses(models, work, plan, batch, StepInfo(step=step))["graft"]
            ks = range(3) if draw == "all" else [drawn_graft(11, step, 3)]
            expected = sum(by_hand(student, teacher, adapters, batch, k) for k in ks) / len(ks)
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_gradients_reach_the_student_and_the_projector_and_not_the_teacher() -> None:
    student, teacher, work, models, batch = grafting("all")
    before = copy.deepcopy(teacher.state_dict())
    step_losses(models, work, plan_forward(work, CUT, CUT), batch, StepInfo())["graft"].backward()
    for name in ("stem", "layer1", "layer2", "layer3"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.net.get_submodule(name).parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in models.adapters.projectors.parameters())
    assert all(p.grad is None for p in student.net.get_submodule("fc").parameters())  # the student's head has no part
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_other_grids_are_averaged_down_and_repeated_up() -> None:
    work = phase(losses=Losses.model_validate({"graft": 1}), pairs=((0, 0),), head=False)
    adapters = FeatureAdapters("pairs", (work,), {0: 3}, {0: 5}).eval()
    feat = torch.randn(2, 3, 4, 2, 8)
    fitted = F.avg_pool3d(feat, (2, 1, 1)).repeat_interleave(3, 3)
    expected = adapters.projectors["1-1"](fitted).relu()
    assert torch.allclose(adapters.grafted(0, 0, feat, (2, 6, 8)), expected, atol=1e-6)


def test_a_graft_takes_the_pair_that_is_nearest_by_depth() -> None:
    assert graft_pairs(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)), 2, 4) == ((0, 1), (1, 3))
    assert graft_pairs(((2, 0),), 3, 1) == ((2, 0),)


def test_each_substage_is_drawn_as_often_and_by_seed_and_step_alone() -> None:
    drawn = [drawn_graft(7, step, 3) for step in range(3000)]
    assert [drawn.count(k) / 3000 for k in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (
        drawn == [drawn_graft(7, step, 3) for step in range(3000)] != [drawn_graft(8, step, 3) for step in range(3000)]
    )


@pytest.mark.slow
def test_stopping_and_going_on_draws_the_same_substages(tmp_path: Path) -> None:
    phases = (phase(epochs=4, losses=Losses.model_validate({"kd": 0.9, "graft": 0.5}), pairs=PAIRS),)

    def made(folder: str, **fields: object):
        torch.manual_seed(3)
        work = job(tmp_path / folder, phases, adapters=FeatureAdapters("pairs", phases, *CHANNELS), **fields)
        teacher = teacher_of(work)
        return dataclasses.replace(work, guides=(LiveGuide(teacher.run, run_from=teacher.run_from),))

    whole = made("whole")
    fit(whole)
    signals = iter([None] * 6 + [15])
    with pytest.raises(Exception, match="checkpoint written"):
        fit(made("parts", interrupted=lambda: next(signals)))
    second = made("parts")
    fit(second)
    for one, two in ((whole.student.net, second.student.net), (whole.adapters, second.adapters)):
        assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_teacher_that_only_gives_outputs_cannot_be_grafted_into() -> None:
    _, teacher, work, models, batch = grafting("one")
    models = dataclasses.replace(models, guides=(LiveGuide(teacher.run),))
    with pytest.raises(TrainingError) as caught:
        step_losses(models, work, plan_forward(work, CUT, CUT), batch, StepInfo())
    assert caught.value.message == "graft runs the teacher's later blocks, and this teacher gives outputs only"
    assert caught.value.hint == "use a teacher that is a network here, or a loss such as kd or hint"


def test_the_compute_of_a_graft_is_counted() -> None:
    """The teacher whole, then its later blocks forward and backward: the mean over the substages, or their sum."""
    shapes = [
        measure(
            lambda w=w: build(Resnet3dTeacher(arch="resnet3d", width=w, blocks=(1, 1, 1), epochs=1), 4, root=REPO),
            4,
            16,
        )
        for w in (4, 8)
    ]
    student, teacher = shapes
    flops, head = teacher.block_flops, 2 * 32 * 4
    later = [flops["layer2"] + flops["layer3"] + head, flops["layer3"] + head, head]
    for draw, behind in (("one", round(2 * sum(later) / 3)), ("all", 2 * sum(later))):
        work = phase(losses=Losses.model_validate({"kd": 1, "graft": {"draw": draw}}), pairs=PAIRS)
        found = train_flops(work, plan_forward(work, CUT, CUT), 5, student, (teacher,), CUT, 0.0, CUT)
        assert found == (3 * student.flops + teacher.flops + behind) * 5 * 8


def test_plan_says_what_is_grafted_and_what_is_refused(project: Path) -> None:
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import Lock
    from stagedkd.spec.load import load_experiment

    both = ["cascade=[]", "distill.phases.joint.losses.graft=1", "distill.phases.joint.losses.rkd={taps: embedding}"]
    plans = compile_experiment(load_experiment(Path("specs/tiny.yaml"), both), Lock())
    lines = list(phase_lines(plans))
    assert "    grafts substages 1 into 1, 2 into 2, one in each step" in lines
    assert "    compares the pooled features in front of the heads" in lines
    ends = "with the guide's maps after layer1, layer2"
    assert any(line.startswith("    compares substages ") and line.endswith(ends) for line in lines), lines
    mvit = [
        "cascade=[]",
        "clip={frames: 16, size: 224}",
        "teacher={$replace: {arch: mvit_v2_s, epochs: 1, labels: same}}",
        *both[1:2],
    ]
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", mvit)
    found = next(problem for problem in caught.value.problems if "graft" in problem.message)
    assert found.message == "graft runs the teacher's later blocks from a feature map, which mvit_v2_s cannot"
    assert found.hint == "use another teacher, or a loss such as kd or hint" and found.place is not None


@pytest.mark.parametrize("arch", ["r3d_18", "swin3d_t"])
def test_networks_go_on_from_a_map_as_they_came(arch: str) -> None:
    torch.manual_seed(0)
    network = build(TorchvisionTeacher.model_validate({"arch": arch, "epochs": 1}), 4, root=REPO).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        maps, logits = network.run(clip, taps=("layer2", EMBEDDING))
        assert logits is not None and torch.allclose(network.run_from(maps["layer2"], "layer2"), logits, atol=1e-5)
        assert torch.allclose(list(network.head_modules)[-1](maps[EMBEDDING].flatten(1)), logits, atol=1e-5)
    with pytest.raises(ValueError, match="no block 'layer9'"):
        network.run_from(maps["layer2"], "layer9")


def test_losses_on_the_embedding_and_sums_over_pairs() -> None:
    student, teacher, _, models, batch = grafting("one")
    named = Losses.model_validate(
        {
            "at": {"reduce": "sum"},
            "nst": {"reduce": "mean"},
            "sp": {"taps": "deepest"},
            "rkd": {"taps": "embedding"},
            "hint": {"taps": "embedding"},
        }
    )
    work = phase(losses=named, pairs=PAIRS, head=False)
    adapters = FeatureAdapters("pairs", (work,), *CHANNELS, widths=(16, 32)).double()
    assert set(adapters.projectors) == {"embedding"}  # no loss on pairs needs a projector
    models = dataclasses.replace(models, adapters=adapters)
    with torch.no_grad():
        found = step_losses(models, work, plan_forward(work, CUT, CUT), batch, StepInfo())
        view, names = fit_input(batch.clip_B3THW, None), ("layer1", "layer2", "layer3")
        mine, theirs = (n.run(view, taps=names, head=False)[0] for n in (student, teacher))
        pooled = [each["layer3"].mean((2, 3, 4), keepdim=True) for each in (mine, theirs)]
        expected = {
            "at": sum(losses.at(mine[n], theirs[n]) for n in names),
            "nst": sum(losses.nst(mine[n], theirs[n]) for n in names) / 3,
            "sp": losses.sp(mine["layer3"], theirs["layer3"]),
            "rkd": losses.rkd(*pooled),
            "hint": losses.hint(adapters.projectors["embedding"](pooled[0]), pooled[1]),
        }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-9
    )


def test_embedding_losses_need_no_substages(project: Path) -> None:
    """A recipe on embeddings alone compares no pairs, and trains."""
    phases = "distill.phases={$replace: {train: {epochs: 1, losses: {ce: 1, crd: {taps: embedding}, pkt: {taps: embedding}}}}}"
    plan = compile_plan(load_spec("specs/tiny.yaml", ["cascade=[]", phases]))
    work = plan.stage("student").work
    assert work.teacher_cut == () and work.phases[0].pairs == ()  # type: ignore[union-attr]
    preflight(plan, project)
