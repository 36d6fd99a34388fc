"""Substages, phases, guides: what is paired with what, how weights move, who speaks; each against its own formula."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagedkd import compile_plan, load_spec, losses, run
from stagedkd.data.mix import Batch, mix, strong_view
from stagedkd.data.views import fit_input
from stagedkd.errors import SpecError, TrainingError
from stagedkd.experiment.preflight import preflight
from stagedkd.models.build import build
from stagedkd.models.shapes import measure
from stagedkd.plan.graph import Plan
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.work import DistillWork, RefineWork, TeachWork
from stagedkd.spec.load import load_experiment
from stagedkd.spec.pairing import band, matching
from stagedkd.spec.schema import Augment, Clip, Kd, Losses, Train
from stagedkd.spec.schema.networks import Resnet3dTeacher, TorchvisionTeacher
from stagedkd.train.adapters import FeatureAdapters, FeaturePair, Fusion, pair_weights
from stagedkd.train.compute import hop_flops, train_flops
from stagedkd.train.correlation import Probe
from stagedkd.train.feature_terms import one_to_one
from stagedkd.train.guides import LiveGuide, drawn_guides
from stagedkd.train.loop import fit
from stagedkd.train.phases import plan_forward
from stagedkd.train.schedule import loss_weight, ramp
from stagedkd.train.step import DistillOptions, StepInfo, StepModel, StepModels
from stagedkd.train.terms import step_losses
from tests.conftest import REPO, TINY
from tests.test_train import CPU, CUT, PAIRS, job, networks, phase, teacher_of


def hop(plan: Plan, name: str = "student") -> DistillWork:
    work = plan.stage(name).work
    assert isinstance(work, DistillWork)
    return work


def tiny(*overrides: str) -> Plan:
    return compile_plan(load_spec("specs/tiny.yaml", overrides))


FOUR = "teacher={arch: resnet3d, width: 8, blocks: [1, 1, 1, 1]}"  # natural substages: 4


@pytest.mark.parametrize(
    ("pairing", "pairs"),
    [
        ("auto", [(0, 0), (1, 1)]),  # the teacher's four natural substages, merged to two
        ("stride", [(0, 0), (1, 1)]),  # strides 2, 4 of the student among 2, 4, 8, 16
        ("depth", [(0, 1), (1, 3)]),
        ("[[1, 2], [2, 2], [2, 4]]", [(0, 1), (1, 1), (1, 3)]),
        ("correlation", [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]),
        ("mixed", [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]),
    ],
)
def test_what_is_held_against_what(project: Path, pairing: str, pairs: list[tuple[int, int]]) -> None:
    work = hop(tiny(FOUR, "cascade=[]", f"distill.pairing={pairing}"))
    assert list(work.phases[-1].pairs) == pairs
    assert len(work.teacher_cut) == (2 if pairing == "auto" else 4)
    assert work.pairing == (pairing if pairing in ("correlation", "mixed") else "pairs")


def test_unequal_substages_are_paired_by_stride_then_by_depth(project: Path) -> None:
    three = "teacher.substages=[[stem, layer1], [layer2], [layer3, layer4]]"
    work = hop(tiny(FOUR, three, "cascade=[]"))
    assert work.teacher_cut == (("stem", "layer1"), ("layer2",), ("layer3", "layer4"))
    assert work.phases[-1].pairs == ((0, 0), (1, 1))
    one = hop(tiny("teacher.substages=[[stem, layer1, layer2]]", "cascade=[]"))
    assert one.phases[-1].pairs == ((0, 0), (1, 0))


def test_one_by_one_compares_what_it_trains(project: Path) -> None:
    phases = hop(tiny(FOUR, "cascade=[]", "distill.pairing=correlation")).phases
    assert phases[0].pairs == ((0, 0), (0, 1)) and phases[1].pairs == ((1, 2), (1, 3))
    cut = "student.substages=[[stem], [layer1], [layer2]]"
    few = hop(tiny("teacher.substages=[[stem, layer1, layer2]]", cut, "cascade=[]", "distill.pairing=correlation"))
    assert [p.pairs for p in few.phases] == [
        ((0, 0),),
        ((1, 0),),
        ((2, 0),),
        ((0, 0), (1, 0), (2, 0)),
    ]


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_band_leaves_nobody_out_and_keeps_the_order(students: int, teachers: int) -> None:
    pairs = band(students, teachers)
    assert {k for k, _ in pairs} == set(range(students)) and {m for _, m in pairs} == set(range(teachers))
    reach = {m: [k for k, other in pairs if other == m] for m in range(teachers)}
    for m in range(1, teachers):
        assert reach[m][0] >= reach[m - 1][0] and reach[m][-1] >= reach[m - 1][-1]
        assert reach[m] == list(range(reach[m][0], reach[m][-1] + 1))


@pytest.mark.parametrize("arch", ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"])
def test_plain_strides_are_those_of_the_built_networks(arch: str) -> None:
    network = TorchvisionTeacher.model_validate({"arch": arch, "epochs": 1})
    size = 224
    maps = measure(lambda: build(network, 4, root=REPO), 16, size).maps  # type: ignore[arg-type]
    assert network.strides == {name: size // shape[2] for name, shape in maps.items()}
    own = Resnet3dTeacher(arch="resnet3d", blocks=(1, 1, 1), epochs=1)
    shapes = measure(lambda: build(own, 4, root=REPO), 8, 64).maps  # type: ignore[arg-type]
    assert own.strides == {name: 64 // shape[2] for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.pairing=[[1, 3]]"], "pair [1, 3]: there is no substage 3, the network above it has 2"),
        (["distill.pairing=[[3, 1]]"], "pair [3, 1]: there is no substage 3, the student has 2"),
        (["distill.pairing=[[1, 1], [1, 1]]"], "a pair is listed twice"),
        (["distill.pairing=[[2, 2]]"], "phase 'grow' needs a pair of substages to compare for substage 1"),
        (
            ["distill.pairing=near"],
            "'distill.pairing' must be auto, stride, depth, correlation, mixed or review, not 'near'",
        ),
        (["distill.drop=0.5"], "drop needs several guides"),
        (["distill.phases.joint.losses.kd={weight: 1, schedule: linear}"], "schedule and to must be set together"),
        (["distill.phases.grow.losses.stage_cka=1"], "'stage_cka' compares substages with each other"),
        (["distill.phases.joint={$replace: {epochs: 1, ramp: 1, losses: {kd: 1}}}"], "ramp needs a loss on features"),
        (["distill.phases.joint.losses.file={path: nets/none.py}"], "nets/none.py is not a file in the project"),
        (["distill.teacher.stop=0"], "'distill.teacher.stop' must be above 0, not 0"),
        (["teacher.labels=same", "refine={kind: ema}"], "no phase uses the refined labels"),
    ],
)
def test_what_cannot_be_is_refused(project: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", overrides)
    assert message in caught.value.problems[0].message


def test_weights_move_as_they_say() -> None:
    def weight(at: float, **fields: object) -> float:
        return loss_weight(Kd.model_validate({"weight": 2.0, **fields}), at, 10)

    assert [weight(e) for e in (0, 5, 10)] == [2, 2, 2]
    assert [weight(e, schedule="linear", to=1.0) for e in (0, 5, 10)] == [2, 1.5, 1]
    assert [round(weight(e, schedule="cosine", to=0.0), 9) for e in (0, 2.5, 5, 10)] == [
        2,
        round(1 + 0.5**0.5, 9),
        1,
        0,
    ]
    assert [weight(e, warmup_epochs=4.0) for e in (0, 1, 4, 9)] == [0, 0.5, 2, 2]
    assert [ramp(1, e, 2.0) for e in (0, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1] and ramp(3, 0, None) == 1


def test_first_epoch_normalisation_puts_losses_on_one_scale(tmp_path: Path) -> None:
    """After the first epoch a loss counts by its weight over its mean of that epoch, whatever its scale was."""
    named = Losses.model_validate({"kd": 1.0, "sp": {"weight": 5000.0}})
    work = job(tmp_path, (phase(epochs=3, losses=named, pairs=PAIRS),), normalize=True)
    at = fit(work)
    means = {name: total / count for name, (total, count) in at.scales.items()}
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert means == pytest.approx({name: rows[0]["losses"][name] for name in ("kd", "sp")}, rel=1e-5)
    last = rows[-1]["losses"]
    assert last["total"] == pytest.approx(last["kd"] / means["kd"] + 5000 * last["sp"] / means["sp"], rel=1e-4)


def test_ramps_let_the_deeper_pairs_in_later(tmp_path: Path) -> None:
    """With a ramp as long as the phase, only the first pair counts: the second one's projector never moves."""
    work = job(
        tmp_path,
        (
            phase(
                epochs=2,
                ramp=2.0,
                losses=Losses.model_validate({"hint": 1.0}),
                pairs=PAIRS,
                head=False,
                train=Train(batch=8, lr=1e-2, weight_decay=0),
            ),
        ),
    )
    before = copy.deepcopy(work.adapters.projectors.state_dict())
    fit(work)
    moved = {
        name.split(".")[0]
        for name, t in work.adapters.projectors.state_dict().items()
        if "0.weight" in name and not torch.equal(t, before[name])
    }
    assert moved == {"1-1"}


def test_correlation_is_debiased_cka_over_the_probe(tmp_path: Path) -> None:
    work = job(tmp_path, (phase(),))
    student, teacher = networks()
    student.train()
    probe = Probe(work.feed.source, list(range(24)), teacher, (CUT, CUT), (None, None))
    rho = probe.correlation(student)
    assert student.training and rho.shape == (3, 3) and bool(((rho >= 0) & (rho <= 1)).all())
    student.eval()
    (view,) = work.feed.source.views(list(range(24)), 1, 1)

    mine = student.run(fit_input(view, None), taps=("layer1", "layer2", "layer3"), head=False)[0]
    theirs = teacher.run(fit_input(view, None), taps=("layer1", "layer2", "layer3"), head=False)[0]
    for k, a in enumerate(mine.values()):
        for m, b in enumerate(theirs.values()):
            x, y = losses.pool_to_common(a, b)
            expected = float(losses.cka(x.detach().flatten(1).double(), y.detach().flatten(1).double()).clamp(0, 1))
            assert float(rho[k, m]) == pytest.approx(expected, abs=1e-4)
    few = dataclasses.replace(probe, clip_ids=[0, 1, 2])
    with pytest.raises(ValueError, match="needs 4 training clips, not 3"):
        few.correlation(student)


def test_a_mixture_is_the_softmax_of_correlation() -> None:
    torch.manual_seed(0)
    work = phase(losses=Losses.model_validate({"hint": 1.0}), pairs=((0, 0), (0, 1), (1, 0), (1, 1)), head=False)
    adapters = FeatureAdapters("correlation", (work,), {0: 3, 1: 5}, {0: 4, 1: 6}).eval()
    rho = torch.tensor([[0.9, 0.2], [0.6, 0.7]])
    student = {0: torch.randn(2, 3, 4, 8, 8), 1: torch.randn(2, 5, 2, 4, 4)}
    teacher = {0: torch.randn(2, 4, 4, 6, 6), 1: torch.randn(2, 6, 2, 2, 2)}
    found = adapters.make_pairs(work, student, teacher, rho)
    assert [pair.teacher.shape[1:] for pair in found] == [(4, 2, 4, 4), (6, 2, 2, 2)]
    weight = torch.exp(torch.tensor([9.0, 6.0]))
    share = weight / weight.sum()
    grid = (2, 4, 4)
    expected = sum(
        share[k] * adapters.projectors[f"{k + 1}-1"](torch.nn.functional.adaptive_avg_pool3d(student[k], grid))
        for k in (0, 1)
    )
    assert torch.allclose(found[0].student, torch.as_tensor(expected), atol=1e-6)
    assert found[0].rho is not None and float(found[0].rho) == pytest.approx(float(share[0] * 0.9 + share[1] * 0.6))


def test_trust_and_deficit_weigh_pairs_either_way() -> None:
    rho = [torch.tensor(v) for v in (0.1, 0.5, 0.9)]
    empty = torch.zeros(0)
    pairs = [FeaturePair(empty, None, empty, r) for r in rho]
    raised = np.exp([0.1, 0.5, 0.9])
    assert [float(w) for w in pair_weights(pairs, "trust")] == pytest.approx((3 * raised / raised.sum()).tolist())
    lowered = 1 / raised
    assert [float(w) for w in pair_weights(pairs, "deficit")] == pytest.approx((3 * lowered / lowered.sum()).tolist())
    assert pair_weights(pairs, "uniform") == [1.0, 1.0, 1.0]
    assert one_to_one([(0, 0), (0, 1), (1, 1)], None) == [(0, 1), (1, 1)]
    assert one_to_one([(0, 0), (0, 1)], torch.tensor([[0.9, 0.1]])) == [(0, 0)]


def test_review_fuses_from_deep_to_shallow() -> None:
    torch.manual_seed(0)
    work = phase(losses=Losses.model_validate({"review": 1.0}), pairs=PAIRS, head=False)
    adapters = FeatureAdapters("review", (work,), {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}).eval()
    student = {k: torch.randn(2, 4 * 2**k, 4, 8 // 2**k, 8 // 2**k, requires_grad=True) for k in range(3)}
    teacher = {k: torch.randn(2, 8 * 2**k, 4, 8 // 2**k, 8 // 2**k) for k in range(3)}
    found = adapters.make_pairs(work, student, teacher, None)
    assert [pair.student.shape for pair in found] == [pair.teacher.shape for pair in found]
    for place, reached in ((0, {0, 1, 2}), (1, {1, 2}), (2, {2})):
        grads = torch.autograd.grad(
            found[place].student.sum(), list(student.values()), retain_graph=True, allow_unused=True
        )
        assert {k for k, g in enumerate(grads) if g is not None and bool(g.abs().sum() > 0)} == reached
    fusion = Fusion(3, 4, 5).eval()
    x, deeper = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 4, 1, 2, 2)
    here = fusion.enter(x)
    up = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    a = fusion.attention(torch.cat([here, up], 1))
    assert torch.allclose(fusion(x, deeper)[0], fusion.leave(here * a[:, :1] + up * a[:, 1:]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["correlation", "review"])
def test_stopping_and_going_on_changes_no_bit_under_any_pairing(tmp_path: Path, pairing: str) -> None:
    """Correlations, contrasts, memories, scales and drawn guides all come back."""
    named = Losses.model_validate({"kd": 0.9, "hint": 0.1, "crd": 0.1, "sliced_w2": 0.1})
    phases = (phase(epochs=4, losses=named, pairs=PAIRS),)

    def made(folder: str, **fields: object):
        torch.manual_seed(3)
        adapters = FeatureAdapters(pairing, phases, {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}, clips=24)
        work = job(tmp_path / folder, phases, adapters=adapters, normalize=True, **fields)
        cuts = (CUT, CUT)
        probe = Probe(work.feed.source, list(range(24)), teacher_of(work), cuts, (None, None))
        both = (*work.guides, LiveGuide(networks()[1].run, weight=2.0))
        return dataclasses.replace(
            work,
            guides=both,
            probe=probe,
            options=DistillOptions(drop=0.4, pair_weights="trust"),
        )

    whole = made("whole")
    fit(whole)
    signals = iter([None] * 6 + [15])
    with pytest.raises(Exception, match="checkpoint written"):
        fit(made("parts", interrupted=lambda: next(signals)))
    second = made("parts")
    fit(second)
    for name, tensor in whole.student.net.state_dict().items():
        assert torch.equal(tensor, second.student.net.state_dict()[name]), name
    for name, tensor in whole.adapters.state_dict().items():
        assert torch.equal(tensor, second.adapters.state_dict()[name]), name


@given(st.integers(1, 5), st.floats(0, 0.99), st.integers(0, 10_000))
def test_some_guide_always_speaks(count: int, drop: float, step: int) -> None:
    kept = drawn_guides(drop, count, 7, step)
    assert kept and kept <= set(range(count)) and (drop or len(kept) == count)


def test_guides_are_dropped_as_often_as_asked() -> None:
    often = np.mean([[i in drawn_guides(0.25, 3, 0, step) for i in range(3)] for step in range(4000)], axis=0)
    assert np.allclose(often, 0.75 + 0.25**3 / 3, atol=0.03)


def test_several_guides_are_a_weighted_mean(tmp_path: Path) -> None:
    """Two guides at shares 1 and 3: the first logged loss is the weighted mean of the two alone."""

    def first(guides: tuple, weights: tuple[float, ...]) -> float:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        work = job(folder, (phase(train=Train(batch=24, lr=1e-6)),))
        live = tuple(LiveGuide(guide.run, weight=weight) for guide, weight in zip(guides, weights, strict=True))
        work = dataclasses.replace(work, guides=live)
        fit(work)
        return json.loads((folder / "events.jsonl").read_text("utf-8").splitlines()[0])["losses"]["kd"]

    torch.manual_seed(5)
    one, two = networks()[1], networks()[1]
    for p in two.parameters():
        p.data.mul_(1.5)
    assert first((one, two), (1.0, 3.0)) == pytest.approx(
        0.25 * first((one,), (1.0,)) + 0.75 * first((two,), (1.0,)), rel=1e-5
    )


def test_a_shuffled_teacher_speaks_of_other_clips(tmp_path: Path) -> None:
    def first(folder: str, shuffle: bool) -> float:
        work = job(tmp_path / folder, (phase(train=Train(batch=24, lr=1e-6)),), options=DistillOptions(shuffle=shuffle))
        twin = copy.deepcopy(work.student).eval().requires_grad_(False)
        work = dataclasses.replace(work, guides=(LiveGuide(twin.run),))
        work.student.eval()
        for module in work.student.modules():
            module.train = lambda mode=True, m=module: (
                m
            )  # BatchNorm as in the teacher, so that equal clips give equal logits
        fit(work)
        return json.loads((tmp_path / folder / "events.jsonl").read_text("utf-8").splitlines()[0])["losses"]["kd"]

    assert first("straight", False) == pytest.approx(0, abs=1e-6) and first("shuffled", True) > 1e-5


def test_fixmatch_and_pseudo_by_their_formulas() -> None:
    torch.manual_seed(0)
    strong, plain = torch.randn(6, 5, dtype=torch.float64), 6 * torch.randn(6, 5, dtype=torch.float64)
    p = np.exp(plain.numpy() - plain.numpy().max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = strong.numpy() - np.log(np.exp(strong.numpy()).sum(1, keepdims=True))
    sure = p.max(1) >= 0.8
    assert 0 < sure.sum() < 6
    expected = -(q[np.arange(6), p.argmax(1)] * sure).sum() / 6
    assert float(losses.fixmatch(strong, plain, threshold=0.8)) == pytest.approx(expected, rel=1e-12)
    posterior = torch.softmax(torch.randn(6, 5, dtype=torch.float64), 1)
    accepted = torch.tensor([True, False, True, True, False, False])
    expected = -(posterior.numpy() * q).sum(1)[accepted.numpy()].sum() / 6
    assert float(losses.pseudo(strong, posterior, accepted)) == pytest.approx(expected, rel=1e-12)
    extreme = torch.tensor([[500.0, -500.0], [0.0, 0.0]], requires_grad=True)
    loss = losses.pseudo(extreme, torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([True, False]))
    loss.backward()
    assert loss.isfinite() and extreme.grad is not None and extreme.grad[1].abs().sum() == 0


def test_the_strong_view_is_drawn_by_its_step_and_stays_in_range() -> None:
    clip = torch.rand(4, 3, 5, 16, 16)
    one, again, other = (strong_view(clip, 1, 0, step) for step in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() <= 1 and one.shape == clip.shape
    grey = (one == 0.5).all(1).all(1)
    assert [int(g.sum()) >= 64 for g in grey] == [True] * 4 and len({tuple(g.flatten().tolist()) for g in grey}) > 1


def test_mixing_mixes_refined_labels_too() -> None:
    batch = Batch(
        torch.rand(4, 3, 2, 8, 8), torch.arange(4), torch.arange(4), torch.eye(4), torch.ones(4, dtype=torch.bool)
    )
    mixed = mix(batch, Augment(mixup=1.0), 0, 0, 0)
    assert mixed.order_B is not None and mixed.posterior_BN is batch.posterior_BN and 0 < mixed.fraction < 1


def test_early_stopped_and_same_label_teachers(project: Path) -> None:
    (project / "specs" / "long.yaml").write_text(
        TINY.replace("labels: all, epochs: 3", "labels: all, epochs: 10"), "utf-8"
    )
    plan = compile_plan(load_spec("specs/long.yaml", ["recipe=early_stopped_teacher", "student.epochs=3"]))
    work = plan.stage("teacher").work
    assert isinstance(work, TeachWork) and work.phase and (work.phase.epochs, work.phase.stop) == (10, 4)
    same = (
        compile_plan(load_spec("specs/long.yaml", ["recipe=same_label_teacher", "student.epochs=3"]))
        .stage("teacher")
        .work
    )
    assert isinstance(same, TeachWork) and same.labels == "same"


def test_an_early_stop_keeps_the_schedule_of_all_epochs(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", (phase(epochs=4),))
    fit(whole)
    stopped = job(tmp_path / "stopped", (phase(epochs=4, stop=2),))
    assert fit(stopped).total == 6
    rows = [
        [json.loads(line)["lr"] for line in (tmp_path / name / "events.jsonl").read_text("utf-8").splitlines()]
        for name in ("whole", "stopped")
    ]
    assert rows[1] == rows[0][:2]


def test_dense_guidance_and_co_teachers_in_the_plan(project: Path) -> None:
    dense = tiny("distill.guides=dense", "distill.drop=0.25")
    assert hop(dense, "assistant-1").guides == () and hop(dense, "assistant-1").drop == 0
    student = dense.stage("student")
    assert student.needs["teacher"] == "assistant-1" and student.needs["guide-1"] == "teacher"
    assert hop(dense).drop == 0.25 and len(hop(dense).guides) == 1
    several = tiny("co_teachers=[{arch: resnet3d, width: 4, blocks: [1, 1], epochs: 2, share: 2}]")
    assert (
        several.stage("assistant-1").needs["guide-1"] == "teacher-2"
        and hop(several, "assistant-1").guides[0].share == 2
    )
    assert "guide-1" not in several.stage("student").needs
    assert [stage.name for stage in several.of_role("co_teacher")] == ["teacher-2"]
    assert tiny("distill.phases.joint.losses={$replace: {ce: 1}}").stage("student").needs.keys() == {
        "data",
        "labels",
        "teacher",
    }


def test_rounds_of_refinement_in_the_plan(project: Path) -> None:
    base = ["teacher.labels=same", "distill.phases.joint.losses.pseudo=0.5"]
    plan = tiny(*base, "refine={kind: noise_model, rounds: 2, folds: 3, by: both}")
    first, second = (plan.stage(f"refine-{i}").work for i in (1, 2))
    assert isinstance(first, RefineWork) and isinstance(second, RefineWork)
    assert [n.by for n in first.networks] == ["teacher", "student"] and [n.phase.epochs for n in first.networks] == [
        3,
        4,
    ]
    assert (
        plan.stage("refine-2").needs["previous"] == "refine-1" and plan.stage("student").needs["refined"] == "refine-2"
    )
    one = tiny(*base, "refine={kind: noise_model, rounds: 1, folds: 3, by: both}")
    assert one.stage("refine-1").key == plan.stage("refine-1").key  # a round more moves no other round
    between = tiny(*base, "refine={kind: noise_model, rounds: 2, between_hops: true}")
    assert [between.stage(n).needs["refined"] for n in ("assistant-1", "student")] == ["refine-1", "refine-2"]
    above = between.stage("refine-2").work
    assert isinstance(above, RefineWork) and above.networks[0].arch == hop(between, "assistant-1").arch


OWN_LOSS = """\
def loss(student, teacher, power=2):
    return (student - teacher).abs().pow(power).mean()
"""


@pytest.mark.slow
def test_a_loss_of_ones_own_is_named_run_and_keyed_by_content(project: Path) -> None:
    (project / "mine.py").write_text(OWN_LOSS, "utf-8")
    overrides = [
        "cascade=[]",
        "control=null",
        "distill.phases.joint.losses.file={path: mine.py, on: logits, args: {power: 1}}",
    ]
    outcome = run(load_spec("specs/tiny.yaml", overrides))
    found = outcome.artifacts["student"].manifest.metrics["losses"]["joint"]
    assert found["file"] > 0
    before = tiny(*overrides).stage("student").key
    (project / "mine.py").write_text(OWN_LOSS + "\n# changed\n", "utf-8")
    assert tiny(*overrides).stage("student").key != before
    (project / "mine.py").write_text("def other(): ...\n", "utf-8")
    with pytest.raises(TrainingError, match=r"mine\.py cannot be used: ValueError: there is no function loss"):
        run(load_spec("specs/tiny.yaml", overrides))


@pytest.mark.slow
def test_warm_start_copies_what_fits_and_says_when_nothing_does(project: Path) -> None:
    same = "student={arch: resnet3d, width: 8, blocks: [1, 1]}"
    outcome = run(
        load_spec(
            "specs/tiny.yaml",
            [
                "cascade=[]",
                "control=null",
                same,
                "distill.warm_start=true",
                "student.substages=[[stem, layer1], [layer2]]",
            ],
        )
    )
    assert outcome.artifacts["student"].manifest.metrics["warm_started"] > 20
    cold = run(load_spec("specs/tiny.yaml", ["cascade=[]", "control=null", "distill.warm_start=true"]))
    assert cold.artifacts["student"].manifest.metrics["warm_started"] == 1  # the head's bias, of as many classes


@pytest.mark.slow
def test_the_correlation_of_a_hop_is_an_artifact(project: Path) -> None:
    outcome = run(
        load_spec("specs/tiny.yaml", ["distill.pairing=correlation", "distill.pair_weights=deficit", "control=null"])
    )
    found = json.loads(outcome.artifacts["student"].file("correlation.json").read_text("utf-8"))
    assert found["student"] == ["stem+layer1", "layer2"] and found["clips"] == 48
    for when in ("before", "after"):
        assert np.shape(found[when]) == (2, 2) and 0 <= np.min(found[when]) <= np.max(found[when]) <= 1
    assert found["before"] != found["after"]


def test_compute_is_counted_from_shapes() -> None:
    """By hand for a phase that trains the second of three substages: the student forward to layer2, back through
    layer2; the teacher forward to layer2."""
    student, teacher = (
        measure(
            lambda w=w: build(Resnet3dTeacher(arch="resnet3d", width=w, blocks=(1, 1, 1), epochs=1), 4, root=REPO),
            4,
            16,
        )
        for w in (4, 8)
    )  # type: ignore[arg-type]
    grow = phase(
        trained=(1,), frozen=(0,), pairs=((1, 1),), head=False, epochs=3, losses=Losses.model_validate({"hint": 1.0})
    )
    found = train_flops(grow, plan_forward(grow, CUT, CUT), 5, student, (teacher,), CUT)
    mine, theirs = student.block_flops, teacher.block_flops
    each = (
        sum(mine[b] for b in ("stem", "layer1"))
        + 3 * mine["layer2"]
        + sum(theirs[b] for b in ("stem", "layer1", "layer2"))
    )
    assert found == each * 3 * 5 * 8
    ce: PhaseWork = phase(losses=Losses.model_validate({"ce": 1.0}), epochs=2)
    assert train_flops(ce, plan_forward(ce, (), ()), 5, student) == 3 * student.flops * 2 * 5 * 8
    assert student.flops == sum(mine.values()) + 2 * 16 * 4  # the head: 16 channels to 4 classes


def test_matching_says_what_is_missing(project: Path) -> None:
    (project / "net.py").write_text("def build(classes): ...\n", "utf-8")
    with pytest.raises(SpecError, match="declare"):
        load_spec(
            "specs/tiny.yaml", ["teacher={$replace: {arch: file, path: net.py, epochs: 1, labels: same}}", "cascade=[]"]
        )
    spec = load_spec("specs/tiny.yaml", ["cascade=[]"])
    assert matching(spec, spec.student, spec.teacher).kind == "pairs"
    assert Clip().frames == 16
    assert CPU.type == "cpu"


# The training compute of each method's hops in units of the first one's, without refinement. Where clips are few,
# methods are compared at equal compute; in `noise_*` the networks of refinement take what `refined`, `refined_ce` and
# `staged` lack.
FEW = {"kd": 1.0, "staged": 1.0, "features_first": 1.0}
GAP = {
    **dict.fromkeys(("kd_1", "takd_1"), 1.0),
    **dict.fromkeys(("kd_4", "takd_4", "dgkd_4", "early_4", "staged_4", "direct_4"), 4.0),
}
COMPUTE: dict[str, tuple[dict[str, float], int]] = {
    "benchmark": (dict.fromkeys(("kd", "ce", "hint", "features_first", "graft", "staged_clean"), 1.0), 160),
    "evidence/few_clips": ({**FEW, "graft": 1.0}, 80),
    "evidence/few_clips_methods": ({"kd": 1.0, "hint": 1.0, "kd_w2": 1.0, "kd_w2_cells": 1.0, "kd_longer": 2.5}, 80),
    "evidence/few_clips_controls": ({"kd": 1.0, "ce": 1.0, "shuffled": 1.0}, 80),
    "evidence/few_clips_responses": (
        dict.fromkeys(("kd", "kd_8", "dkd", "dist", "logit_std", "hint_kd", "kd_twice"), 1.0),
        80,
    ),
    "evidence/few_clips_40": (FEW, 40),
    "evidence/few_clips_160": (FEW, 160),
    "evidence/few_clips_same": (FEW, 80),
    "evidence/few_clips_all": (FEW, 800),
    "evidence/noise_symmetric": ({"kd": 1.0, "refined": 0.5}, 3200),
    "evidence/noise_asymmetric": ({"kd": 1.0, "refined": 0.5}, 3200),
    "evidence/noise_methods": (
        {
            **dict.fromkeys(("kd", "kd_teacher", "ce", "smoothing", "gce", "elr"), 1.0),
            "fixmatch": 1.03,
            "refined_ce": 0.48,
            "staged": 0.54,
        },
        3200,
    ),
    "evidence/gap_60": (GAP, 800),
    "evidence/gap_15": (GAP, 800),
}


@pytest.mark.parametrize("spec", COMPUTE)
def test_every_method_of_a_comparison_has_the_compute_of_kd(spec: str) -> None:
    """The epochs in the spec are those at which the training compute of all hops is that of kd."""
    ratios, sees = COMPUTE[spec]
    cells = load_experiment(REPO / "specs" / f"{spec}.yaml", cells=["seed=0"]).cells
    found: dict[str, int] = {}
    for cell in cells:
        plan = compile_plan(cell.spec)
        seen = preflight(plan, REPO).networks
        hops = [(stage, stage.work) for stage in plan.stages if isinstance(stage.work, DistillWork)]
        found[cell.labels["method"]] = sum(
            hop_flops(
                work,
                [
                    seen[n]
                    for n in (
                        stage.name,
                        stage.needs["teacher"],
                        *(v for r, v in stage.needs.items() if r.startswith("guide")),
                    )
                ],
                sees,
            )
            for stage, work in hops
        )
    unit = found[next(iter(ratios))]
    assert {name: flops / unit for name, flops in found.items()} == pytest.approx(ratios, rel=0.03)
    one = cells[0].spec
    part = one.student.sees
    assert (part.count if part else getattr(one.data, "train", 0)) == sees and one.evaluate.split == "test"


# ---------------------------------------------------------------- the terms of a step, by formula


def test_the_terms_of_a_step_by_their_formulas() -> None:
    """Mixed labels by their shares, refined labels of the right clips, pairs weighed by trust, the strong view."""
    torch.manual_seed(0)
    student, teacher = networks()
    student.eval()
    named = Losses.model_validate({"ce": 1, "pseudo": 1, "fixmatch": {"threshold": 0.26}, "hint": 1, "kd": 1})
    work = phase(losses=named, pairs=PAIRS, train=Train(batch=6))
    adapters = FeatureAdapters("pairs", (work,), {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}).eval()
    options = DistillOptions(pair_weights="trust", seed=11)
    models = StepModels(StepModel(student.run), (LiveGuide(teacher.run),), adapters, CPU, options)
    labels, posterior = torch.tensor([0, 1, -1, 2, 3, -1]), torch.softmax(torch.randn(6, 4), 1)
    accepted, order = torch.tensor([True, False, True, True, False, True]), torch.tensor([3, 0, 4, 1, 5, 2])
    clip = torch.rand(6, 3, 4, 16, 16)
    batch = Batch(clip, labels, torch.arange(6), posterior, accepted, order, 0.7)
    rho = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.5, 0.1], [0.1, 0.1, 0.2]])
    info = StepInfo(phase=1, epoch=0.0, step=5, rho_KM=rho)
    with torch.no_grad():
        parts = step_losses(models, work, plan_forward(work, CUT, CUT), batch, info)
    student.requires_grad_(False)
    adapters.requires_grad_(False)
    view = fit_input(clip, None)
    logits = student(view)

    def ce(targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1)

    def refined(q: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return (-(q * logits.log_softmax(1)).sum(1) * m).mean()

    expected = {
        "ce": 0.7 * ce(labels) + 0.3 * ce(labels[order]),
        "pseudo": 0.7 * refined(posterior, accepted) + 0.3 * refined(posterior[order], accepted[order]),
    }
    strong = student(fit_input(strong_view(clip, 11, 1, 5), None))
    sure, own = logits.softmax(1).max(1)
    assert (sure >= 0.26).any() and not torch.allclose(strong, logits)
    expected["fixmatch"] = (torch.nn.functional.cross_entropy(strong, own, reduction="none") * (sure >= 0.26)).mean()
    names = ("layer1", "layer2", "layer3")
    mine, theirs = (n.run(view, taps=names, head=False)[0] for n in (student, teacher))
    weight = torch.softmax(torch.tensor([0.9, 0.5, 0.2]), 0)
    expected["hint"] = sum(
        w * (adapters.projectors[f"{k}-{k}"](mine[n]) - theirs[n]).square().mean()
        for k, (n, w) in enumerate(zip(names, weight, strict=True), 1)
    )
    expected["kd"] = losses.kd(logits, teacher(view))
    assert set(parts) == set(expected)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-4), name


def test_a_loss_that_begins_at_zero_is_not_blown_up(tmp_path: Path) -> None:
    """FixMatch says nothing until the student is sure: its first epoch is the one in which it speaks."""
    at = fit(
        job(
            tmp_path,
            (phase(epochs=2, losses=Losses.model_validate({"kd": 1.0, "fixmatch": {"threshold": 0.999}})),),
            normalize=True,
        )
    )
    assert "fixmatch" not in {name for name, (total, _) in at.scales.items() if total} and at.last["p"]["total"] < 10


def test_a_contrast_remembers_a_repeated_clip_once() -> None:
    torch.manual_seed(0)
    crd = losses.CRD(clips=8, student_channels=4, teacher_channels=4).train()
    feats = torch.randn(3, 4, 1, 2, 2), torch.randn(3, 4, 1, 2, 2)
    before = crd.student_memory.clone()
    crd(*feats, torch.tensor([5, 2, 5]))
    embedded = torch.nn.functional.normalize(crd.student_embedding(feats[0].mean((2, 3, 4))), dim=1)
    first = torch.nn.functional.normalize(0.5 * before[5] + 0.5 * embedded[0], dim=0)
    assert torch.allclose(crd.student_memory[5], first, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.normalize=first_epoch", "distill.phases.joint.ramp=1"], "normalize would undo the ramp"),
        (
            ["train.batch=3", "distill.phases.joint.losses.cka=1"],
            "'cka' compares clips with each other: it needs batches of 4 or more",
        ),
        (["train.batch=1", "distill.teacher.shuffle=true"], "shuffle needs batches of 2 or more"),
        (
            [
                "distill.pairing=[[1, 1], [1, 2]]",
                "distill.phases={$replace: {joint: {epochs: 1, losses: {kd: 1, stage_cka: 1}}}}",
            ],
            "needs two pairs",
        ),
        (
            ["distill.phases.late={epochs: 1, losses: {crd: {temperature: 0.5}}}", "distill.phases.joint.losses.crd=1"],
            "crd has one memory for all phases",
        ),
        (
            [
                "cascade=[{arch: resnet3d, width: 6, blocks: [1], substages: [[stem, layer1]]}]",
                "distill.phases={$replace: {joint: {epochs: 1, substages: [2], losses: {kd: 1}}}}",
            ],
            "phase 'joint' names substage 2, but assistant 1 has 1",
        ),
        (
            [
                "cascade=[]",
                "labels={$replace: {clean: 0}}",
                "control=null",
                "distill.phases.joint.losses={$replace: {kd: 1}}",
                "co_teachers=[{arch: resnet3d, width: 4, blocks: [1, 1], epochs: 2}]",
            ],
            "the teacher has no labels",
        ),
    ],
)
def test_more_that_cannot_be_is_refused(project: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", overrides)
    assert message in caught.value.problems[0].message


def test_an_own_network_without_substages_is_refused_where_something_is_compared(project: Path) -> None:
    (project / "net.py").write_text("def build(classes): ...\n", "utf-8")
    for pairing in ("auto", "review", "correlation", "mixed", "stride", "depth"):
        with pytest.raises(SpecError, match="must declare its substages"):
            load_spec(
                "specs/tiny.yaml", ["cascade=[{arch: file, path: net.py, epochs: 3}]", f"distill.pairing={pairing}"]
            )
    own = [
        "student={$replace: {arch: file, path: net.py}}",
        "cascade=[]",
        "distill.phases={$replace: {joint: {epochs: 1, substages: [1], losses: {kd: 1}}}}",
    ]
    with pytest.raises(SpecError, match="names substages, but the student declares none"):
        load_spec("specs/tiny.yaml", own)


def test_idle_fields_of_a_rule_and_what_cannot_be_had_are_said(project: Path) -> None:
    base = ["teacher.labels=same", "distill.phases.joint.losses.pseudo=0.5"]
    one, two = (tiny(*base, f"refine={{kind: noise_model, decay: {d}}}").stage("refine-1").key for d in (0.2, 0.9))
    assert one == two
    one, two = (tiny(*base, f"refine={{kind: ema, align: {a}}}").stage("refine-1").key for a in (0.2, 0.9))
    assert one == two
    assert any("plain distillation" in note for note in tiny("cascade=[]", "distill.guides=dense").notes)
    tsm = tiny("student={$replace: {arch: tsm, backbone: resnet18}}", "cascade=[]", "distill.pairing=stride")
    assert any("strides of tsm are not known" in note for note in tsm.notes)
