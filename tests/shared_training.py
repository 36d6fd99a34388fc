"""Small trainings in float64, one for each loss, by one process or by several: `python shared_training.py FOLDER RANK
COUNT` does all of them as one of the ranks, and writes what each left to FOLDER/<case>-<rank>.safetensors; then one
with BatchNorm, and why it is refused to FOLDER/refused-<rank>.txt; then it goes on with the stage in FOLDER/resumed."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from stagedkd.data.source import SimulatedClips
from stagedkd.errors import TrainingError
from stagedkd.models.network import Anatomy, Network
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Augment, Clip, Losses, Simulated, Train
from stagedkd.stages.context import Context, Stop
from stagedkd.stages.training import training_device
from stagedkd.store.store import Workspace
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.correlation import Probe
from stagedkd.train.exits import ResponseModules
from stagedkd.train.feed import Feed, Refined
from stagedkd.train.guides import LiveGuide
from stagedkd.train.job import Execution, Job
from stagedkd.train.loop import fit
from stagedkd.train.ranks import Ranks
from stagedkd.train.sinks import open_log
from stagedkd.train.step import DistillOptions
from tests.tools import Heard

CLIPS, BATCH, CLASSES = 24, 8, 4
CUT = (("stem",), ("mid",))
CPU = torch.device("cpu")
SOURCE = SimulatedClips(Simulated(kind="shapes", classes=CLASSES), ["train"] * CLIPS, Clip(frames=4, size=8), CPU)
FEATURES = {
    "hint": 1.0,
    "at": 10.0,
    "review": 1.0,
    "nst": 10.0,
    "coral": 1.0,
    "sp": 10.0,
    "rkd": 1.0,
    "pkt": 10.0,
    "cka": 1.0,
    "stage_cka": 1.0,
    "gaussian_w2": 1.0,
    "gaussian_kl": 0.1,
    "mmd": 1.0,
    "sliced_w2": 1.0,
    "crd": 0.1,
}
OVER_THE_BATCH = ("gaussian_w2", "gaussian_kl", "mmd", "sliced_w2")
# name -> losses, and what else the case is about
CASES: dict[str, dict[str, object]] = {
    "ce": {"losses": {"ce": 1.0}},
    "smoothed": {"losses": {"ce": {"weight": 1.0, "smoothing": 0.1}, "kd": 0.1}},
    "kd": {"losses": {"kd": 1.0, "ce": 0.1}},
    "dkd": {"losses": {"dkd": 1.0}},
    "dist": {"losses": {"dist": 1.0}},
    "logit_std": {"losses": {"logit_std": 1.0}},
    "pseudo": {"losses": {"pseudo": 1.0}},
    "fixmatch": {"losses": {"fixmatch": {"weight": 1.0, "threshold": 0.2}, "ce": 1.0}},
    "noisy": {"losses": {"gce": 1.0, "sce": 1.0, "elr": {"weigh": "confidence"}}},
    "mean_teacher": {"losses": {"mean_teacher": 8.0, "ce": 1.0}},
    "levels": {"losses": {"wttm": {"weigh": "entropy"}, "mlld": {"standardise": True}, "sdd": 1.0}},
    "ofa": {"losses": {"ofa": {"gamma": 1.2, "weigh": {"file": "w.csv"}}}},
    **{name: {"losses": {name: weight}} for name, weight in FEATURES.items()},
    **{f"{name} over the batch": {"losses": {name: {"weight": 1.0, "samples": "batch"}}} for name in OVER_THE_BATCH},
    "mixed": {"losses": {"ce": 1.0, "kd": 0.5}, "augment": {"crop": 0.8, "jitter": 0.1, "mixup": 0.5, "cutmix": 0.5}},
    "fused": {"losses": {"review": 1.0, "sp": 1.0}, "pairing": "review"},
    "correlated": {"losses": {"gaussian_w2": 1.0, "rkd": 1.0}, "pairing": "correlation"},
    "scaled": {"losses": {"kd": 1.0, "hint": 1.0}, "normalize": True},
    "clipped": {"losses": {"kd": 1.0, "sp": 10.0}, "train": {"clip_grad": 0.01, "optimizer": "adamw", "ema": 0.5}},
    "shuffled": {"losses": {"kd": 1.0, "hint": 1.0}, "shuffle": True},
    "dropped": {"losses": {"kd": 1.0, "hint": 1.0}, "dropped": True, "train": {"weight_decay": 0.1}},
}


class First(nn.Conv3d):
    """Takes float32 clips into a network of another precision."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class Halves(nn.Module):
    """Three layers of a size: one for the first half of a batch, one for the second, one for none. So each of two ranks
    leaves out another, as where layers are dropped by chance, and one process can do the same."""

    def __init__(self, width: int, ranks: Ranks) -> None:
        super().__init__()
        self.layers, self.ranks = nn.ModuleList(nn.Conv3d(width, width, 1) for _ in range(3)), ranks

    def forward(self, feat_BCTHW: Tensor) -> Tensor:
        if self.ranks.count == 2:
            return feat_BCTHW + self.layers[self.ranks.number](feat_BCTHW)
        return feat_BCTHW + torch.cat([self.layers[i](half) for i, half in enumerate(feat_BCTHW.chunk(2))])


def network(width: int, seed: int, norm: str = "group", dropped: Ranks | None = None) -> Network:
    """Two blocks and a head; GroupNorm unless asked otherwise; `dropped`: with layers that these ranks leave out."""
    torch.manual_seed(seed)
    net = nn.Sequential()

    def normed() -> nn.Module:
        return nn.GroupNorm(2, width) if norm == "group" else nn.BatchNorm3d(width)

    net.add_module("stem", nn.Sequential(First(3, width, 3, (1, 2, 2), 1), normed(), nn.ReLU()))
    mid = nn.Sequential(nn.Conv3d(width, width, 3, 2, 1), normed(), nn.ReLU())
    if dropped is not None:
        mid.append(Halves(width, dropped))
    net.add_module("mid", mid)
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, CLASSES)))
    anatomy = Anatomy(
        {"stem": ("stem",), "mid": ("mid",)},
        ("head",),
        lambda net, state: net.get_submodule("head")(state),
        positions=lambda net, state: net.get_submodule("head.2")(state.movedim(1, -1)).movedim(-1, 1),
    )
    return Network(net, anatomy)


def job(case: Mapping[str, object], folder: Path, ranks: Ranks, norm: str = "group") -> Job:
    """The training of a case; a quarter of the clips is labelled, unevenly over any two halves of a batch."""
    settings = {"batch": BATCH, "lr": 0.05, "optimizer": "sgd", **dict(case.get("train", {}))}  # pyright: ignore
    pairing = str(case.get("pairing", "pairs"))
    named = Losses.model_validate(case["losses"])
    paired = bool(set(named.named()) & (set(FEATURES) | {"review"}))
    pairs = ((0, 0), (1, 1)) if paired else ()
    if pairing == "correlation":
        pairs = ((0, 0), (0, 1), (1, 0), (1, 1))
    phase = PhaseWork(
        name="p",
        epochs=2,
        trained=(0, 1),
        frozen=(),
        pairs=pairs,
        head=not paired or "kd" in named.named(),
        losses=named,
        train=Train.model_validate(settings),
    )
    student = network(4, 1, norm, ranks if case.get("dropped") else None).double()
    teacher = network(6, 2).double().eval().requires_grad_(False)
    responses = ResponseModules((phase,), {0: 4, 1: 4}, CLASSES, CLIPS, student)
    adapters = FeatureAdapters(pairing, (phase,), {0: 4, 1: 4}, {0: 6, 1: 6}, CLIPS, responses=responses).double()
    labels = np.where(np.arange(CLIPS) % 8 < 2, np.arange(CLIPS) % CLASSES, -1)
    dice = np.random.default_rng(3)
    posteriors = dice.dirichlet(np.ones(CLASSES), CLIPS).astype(np.float32)
    augment = Augment.model_validate(case.get("augment", {"crop": 0.8, "jitter": 0.1}))
    feed = Feed(SOURCE, np.arange(CLIPS), labels, augment, 5, refined=Refined(posteriors, dice.random(CLIPS) < 0.4))
    probe = Probe(SOURCE, list(range(CLIPS)), teacher, (CUT, CUT), (None, None))
    return Job(
        student=student,
        input=None,
        adapters=adapters,
        guides=(LiveGuide(teacher.run, ranks=ranks),),
        cut=CUT,
        teacher_cut=CUT,
        phases=(phase,),
        feed=feed,
        execution=Execution(CPU, folder, open_log(folder), checkpoint_seconds=1e9, ranks=ranks),
        options=DistillOptions(shuffle=bool(case.get("shuffle")), seed=5),
        normalize=bool(case.get("normalize")),
        probe=probe if pairing == "correlation" else None,
        clip_weights={"w.csv": torch.arange(CLIPS) % 3.0},
    )


def trained(case: Mapping[str, object], ranks: Ranks, norm: str = "group") -> dict[str, Tensor]:
    """What a training leaves: the student, the adapters with their statistics and memories, and the last mean losses."""
    with tempfile.TemporaryDirectory() as folder:
        work = job(case, Path(folder), ranks, norm)
        at = fit(work)
    left = {f"student.{name}": t for name, t in work.student.state_dict().items()}
    left |= {f"adapters.{name}": t for name, t in work.adapters.state_dict().items()}
    left |= {f"loss.{name}": torch.tensor(value, dtype=torch.float64) for name, value in at.last["p"].items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in left.items()}


def main() -> None:
    folder, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=count)
    for name, case in CASES.items():
        save_file(trained(case, Ranks(number, count)), folder / f"{name}-{number}.safetensors")
    try:
        trained({"losses": {"ce": 1.0}}, Ranks(number, count), "batch")
    except TrainingError as error:
        (folder / f"refused-{number}.txt").write_text(f"{error.message}: {error.hint}", "utf-8")
    resumed(folder / "resumed", number)
    dist.destroy_process_group()


def resumed(scratch: Path, number: int) -> None:
    """Go on as one of two ranks, the second one late, with a stage that a process alone began; `heard-<rank>.txt` has
    what was said of it."""
    heard, runtime = Heard(), Runtime(root=str(scratch), device="cpu", threads=1, gpus=2)
    nobody: Any = None
    context = Context(
        plan=nobody,
        stage=nobody,
        inputs={},
        workspace=Workspace(scratch, scratch),
        manifest=nobody,
        runtime=runtime,
        listener=heard,
        stop=Stop(),
        rank=number,
        ranks=2,
    )
    time.sleep(0.5 * number)
    training_device(context)
    (scratch / f"heard-{number}.txt").write_text("\n".join(heard.notes), "utf-8")


if __name__ == "__main__":
    main()
