"""The training loop: what a phase trains, freezes and runs; schedule, EMA, precision; losses that explode."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stagedkd import losses
from stagedkd.data.source import SimulatedClips
from stagedkd.errors import TrainingError
from stagedkd.models.network import Network
from stagedkd.models.resnet3d import resnet3d
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import FEATURES, Augment, Clip, GaussianW2, Hint, Input, Kd, Losses, Simulated, Train
from stagedkd.train import checkpoint
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.backend import sound_backend
from stagedkd.train.feed import Feed
from stagedkd.train.guides import LiveGuide
from stagedkd.train.job import Execution, Job
from stagedkd.train.loop import fit
from stagedkd.train.phases import set_modes
from stagedkd.train.schedule import learning_rate
from stagedkd.train.sinks import open_log

CUT = (("stem", "layer1"), ("layer2",), ("layer3",))
CPU = torch.device("cpu")
PAIRS = ((0, 0), (1, 1), (2, 2))


def phase(**fields: object) -> PhaseWork:
    values: dict[str, object] = {
        "name": "p",
        "epochs": 1,
        "trained": (0, 1, 2),
        "frozen": (),
        "pairs": (),
        "head": True,
        "losses": Losses(kd=Kd()),
        "train": Train(batch=8, lr=1e-2),
    }
    return PhaseWork.model_validate(values | fields)


GROW_2 = phase(trained=(1,), frozen=(0,), pairs=((1, 1),), head=False, losses=Losses(gaussian_w2=GaussianW2()))


def networks() -> tuple[Network, Network]:
    torch.manual_seed(0)
    return resnet3d(4, (1, 1, 1), "full", 4), resnet3d(8, (1, 1, 1), "full", 4).eval().requires_grad_(False)


def job(tmp_path: Path, phases: tuple[PhaseWork, ...], **fields: object) -> Job:
    tmp_path.mkdir(parents=True, exist_ok=True)
    student, teacher = networks()
    data, clip = Simulated(kind="shapes", classes=4), Clip(frames=4, size=16)
    labels = np.arange(24) % 4
    labels[12:] = -1
    feed = Feed(
        SimulatedClips(data, ["train"] * 24, clip, CPU), np.arange(24), labels, Augment(crop=1.0, jitter=0.0), 5
    )
    adapters = FeatureAdapters("pairs", phases, {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}, clips=24)
    how = {name: fields.pop(name) for name in ("interrupted", "checkpoint_seconds", "loss_every") if name in fields}
    values: dict[str, object] = {
        "student": student,
        "input": None,
        "adapters": adapters,
        "guides": (LiveGuide(teacher.run),),
        "cut": CUT,
        "teacher_cut": CUT,
        "phases": phases,
        "feed": feed,
        "execution": Execution(CPU, tmp_path, open_log(tmp_path), **how),  # pyright: ignore[reportArgumentType]
    }
    return Job(**(values | fields))  # pyright: ignore[reportArgumentType]


def teacher_of(work: Job) -> Network:
    """The network of the first guide."""
    guide = work.guides[0]
    assert isinstance(guide, LiveGuide)
    return guide.run.__self__  # pyright: ignore[reportFunctionMemberAccess]


def test_a_grow_phase_moves_its_substage_alone(tmp_path: Path) -> None:
    work = job(tmp_path, (GROW_2,))
    before = copy.deepcopy(work.student.net.state_dict())
    teacher = copy.deepcopy(teacher_of(work).net.state_dict())
    fit(work)
    after = work.student.net.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"layer2"}  # neither weights nor BatchNorm statistics of the frozen and later blocks
    assert all(torch.equal(t, teacher[n]) for n, t in teacher_of(work).net.state_dict().items())


def test_a_grow_phase_runs_no_later_block_of_either_network(tmp_path: Path) -> None:
    work = job(tmp_path, (GROW_2,))
    ran: set[str] = set()
    for who, network in (("student", work.student), ("teacher", teacher_of(work))):
        for name in (*network.blocks, "fc"):
            network.net.get_submodule(name).register_forward_hook(lambda *_, at=f"{who}.{name}": ran.add(at))
    fit(work)
    assert ran == {f"{who}.{block}" for who in ("student", "teacher") for block in ("stem", "layer1", "layer2")}


def test_modes_of_a_phase() -> None:
    student, _ = networks()
    adapters = FeatureAdapters("pairs", (GROW_2,), {1: 8}, {1: 16})
    set_modes(student, adapters, GROW_2, CUT)
    training = {n for n, m in student.net.named_modules() if isinstance(m, nn.BatchNorm3d) and m.training}
    assert training and all(name.startswith("layer2") for name in training)
    assert {n.split(".")[0] for n, p in student.net.named_parameters() if p.requires_grad} == {"layer2"}
    assert all(p.requires_grad for p in adapters.parameters()) and set(adapters.projectors) == {"2-2"}


def test_projectors_do_not_ship_with_the_student(tmp_path: Path) -> None:
    work = job(tmp_path, (phase(losses=Losses(hint=Hint(), kd=Kd()), pairs=PAIRS),))
    names = set(work.student.net.state_dict())
    fit(work)
    assert set(work.student.net.state_dict()) == names and len(work.adapters.projectors) == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_lowers_the_loss(tmp_path: Path, precision: str, optimizer: str) -> None:
    train = Train.model_validate({"batch": 8, "lr": 2e-2, "precision": precision, "optimizer": optimizer})
    work = job(tmp_path, (phase(epochs=1, train=train), phase(name="q", epochs=10, train=train)))
    at = fit(work)
    assert at.total == 33 and at.last["q"]["kd"] < 0.5 * at.last["p"]["kd"]


def test_stopping_and_going_on_in_mid_epoch_changes_no_bit(tmp_path: Path) -> None:
    phases = (GROW_2, phase(epochs=3, train=Train(batch=8, lr=1e-2, ema=0.8)))
    whole = job(tmp_path / "whole", phases)
    fit(whole)
    signals = iter([None] * 4 + [15])
    first = job(tmp_path / "parts", phases, interrupted=lambda: next(signals))
    with pytest.raises(Exception, match="checkpoint written"):
        fit(first)
    second = job(tmp_path / "parts", phases)
    fit(second)
    for name, tensor in whole.student.net.state_dict().items():
        assert torch.equal(tensor, second.student.net.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_with_its_name_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = (phase(), phase(name="wild", epochs=3))
    work = job(tmp_path, phases, checkpoint_seconds=0.0)
    kd, calls = losses.kd, iter(range(100))
    monkeypatch.setitem(
        losses.FUNCTIONS, "kd", lambda *a, **k: kd(*a, **k) * (float("nan") if next(calls) == 7 else 1.0)
    )
    with pytest.raises(TrainingError, match=r"loss 'kd' is nan at phase wild, epoch 2, step 5") as caught:
        fit(work)
    assert "lower train.lr" in caught.value.hint
    saved = checkpoint.load(tmp_path)
    assert (
        saved is not None and saved["at"]["total"] == 6 and all(t.isfinite().all() for t in saved["student"].values())
    )


def test_batches_are_full_and_cover_every_clip_once_a_round(tmp_path: Path) -> None:
    feed = job(tmp_path, (phase(),)).feed
    seen: list[int] = []

    class Spy:
        loads = False

        def train_view(self, clip_id: int, *_: object) -> None:
            seen.append(clip_id)

        def load(self, *_: object) -> list[torch.Tensor]:
            return []

        def finish(self, clip_ids: list[int], *_: object) -> torch.Tensor:
            return torch.zeros(len(clip_ids), 1)

    spied = Feed(Spy(), feed.clip_ids, feed.labels, feed.augment, feed.seed)  # pyright: ignore[reportArgumentType]
    work = phase(train=Train(batch=7))
    assert spied.steps(work) == 4
    for step in range(24):
        batch = spied.batch(work, 0, step, CPU)
        assert len(batch.clip_B3THW) == len(batch.labels_B) == 7
    rounds = np.array(seen).reshape(7, 24)
    assert (
        all(sorted(row) == list(range(24)) for row in rounds.tolist()) and len({tuple(r) for r in rounds.tolist()}) == 7
    )
    seen.clear()
    only_ce = phase(losses=Losses.model_validate({"ce": 1.0}), train=Train(batch=7))
    for step in range(12):
        assert (spied.batch(only_ce, 0, step, CPU).labels_B >= 0).all()
    assert sorted(seen) == sorted(list(range(12)) * 7)


def test_finite_views_come_back_and_endless_ones_do_not(tmp_path: Path) -> None:
    whole = job(tmp_path, (phase(),)).feed
    augmented = dataclasses.replace(whole, augment=Augment(crop=0.5, jitter=0.3))
    for count in (3, None):
        feed = dataclasses.replace(augmented, view_count=count)
        seen: dict[int, set[tuple[int, ...]]] = {}
        for number in (0, 1):  # two phases
            for step in range(18):
                picked = feed.pick(phase(), number, step)
                for clip, view in zip(picked.clip_ids, picked.views, strict=True):
                    seen.setdefault(clip, set()).add((*view.box, int(1000 * view.brightness)))
        assert {len(views) for views in seen.values()} == ({3} if count else {12})


def test_batches_loaded_ahead_are_those_made_at_once(tmp_path: Path) -> None:
    feed = job(tmp_path, (phase(),)).feed
    mixed = dataclasses.replace(feed, augment=Augment(crop=0.5, mixup=0.5, cutmix=0.5))
    row = mixed.batches(phase(), 1, 4, CPU)
    for step in range(4, 9):
        (made, seconds), wanted = next(row), mixed.batch(phase(), 1, step, CPU)
        assert torch.equal(made.clip_B3THW, wanted.clip_B3THW) and made.fraction == wanted.fraction and seconds > 0
    row.close()


def test_training_on_mixed_clips_and_own_inputs(tmp_path: Path) -> None:
    """Teacher and student see the same mixed view, each at its own size, and the loss falls."""
    work = job(
        tmp_path,
        (phase(epochs=6, losses=Losses.model_validate({"ce": 0.5, "kd": 0.5, "sp": 1.0}), pairs=PAIRS),),
        input=Input(size=8, frames=2),
        guides=(LiveGuide(networks()[1].run, Input(normalize="half")),),
    )
    work = dataclasses.replace(work, feed=dataclasses.replace(work.feed, augment=Augment(crop=1.0, mixup=0.3)))
    fit(work)
    rows = [json.loads(line)["losses"]["total"] for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert rows[-1] < rows[0]


def test_the_schedule() -> None:
    train = Train(lr=1.0, warmup_epochs=1)
    rates = [learning_rate(train, step, 40, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[25] == pytest.approx(0.5) and 0 < rates[-1] < 0.01
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    constant = Train(lr=0.5, schedule="constant")
    assert {learning_rate(constant, step, 40, 10) for step in range(40)} == {0.5}


def test_a_golden_run_keeps_its_loss(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Changes only with `--golden` and a bumped version of Teach and Distill."""
    torch.manual_seed(1)
    at = fit(
        job(tmp_path, (GROW_2, phase(name="joint", epochs=2, losses=Losses.model_validate({"ce": 0.1, "kd": 0.9}))))
    )
    found = {name: value for means in at.last.values() for name, value in means.items()}
    path = Path(__file__).with_name("golden_loss.json")
    if request.config.getoption("--golden"):
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    golden = json.loads(path.read_text("utf-8"))
    assert found == pytest.approx(golden, rel=1e-4)  # other processors round the last bits otherwise


def test_bf16_on_the_cpu_has_sound_gradients(tmp_path: Path) -> None:
    """docs/decisions/0005: with oneDNN a tenth of these steps has gradients of 1e35."""
    torch.manual_seed(0)
    conv = nn.Conv3d(64, 64, 3, padding=1, bias=False)
    with sound_backend(CPU, "bf16"):
        for _ in range(20):
            x = torch.randn(32, 64, 2, 3, 3)
            with torch.autocast("cpu", torch.bfloat16):
                loss = conv(x).square().mean()
            conv.zero_grad()
            loss.backward()
            assert conv.weight.grad is not None and conv.weight.grad.abs().max() < 10
    assert torch.backends.mkldnn.enabled


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "dkd",
        "dist",
        "logit_std",
        "at",
        "review",
        "gaussian_kl",
        "mmd",
        "nst",
        "coral",
        "sliced_w2",
        "sp",
        "rkd",
        "pkt",
        "cka",
        "stage_cka",
        "crd",
    ],
)
def test_every_loss_trains_a_student(tmp_path: Path, name: str) -> None:
    """Declared by its name alone: the loss falls, on clips with and without labels, and the projectors are its own."""
    losses_ = Losses.model_validate({name: 1.0})
    pairs = PAIRS if losses_.comparing(FEATURES) else ()
    work = job(tmp_path, (phase(epochs=8, losses=losses_, pairs=pairs, head=not pairs),))
    fit(work)
    rows = [json.loads(line)["losses"][name] for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert rows[-1] < rows[0], rows
