"""One whole hop, grow phases one by one and then all substages jointly, by stagedkd or by one of its rivals.

    python benchmarks/hop.py SIDE SIZE

SIDE: stagedkd | torchdistill | loop | loop-kept (a bare PyTorch loop that keeps the teacher's outputs in memory).
SIZE: large, r3d_18 -> 0.9 M parameters on 16 clips of 8x56x56 in batches of 8, 20 joint epochs; or quickstart, the
networks, clips, batches and epochs of specs/quickstart.yaml on 384 clips in place of 1,200; or tiny, which only shows
that the sides agree.

Prints one line of JSON. `seconds` is the CPU time of the training: every step with its batch, the set-up of optimizers
and boxes, and with stagedkd also filling what is kept of the teacher, events and checkpoints. Left out on all sides:
imports, rendering the clips (all are in memory before), building the networks. `stage_seconds` is the CPU time of the
whole stage in which the training runs. `losses` are the means over the last epoch of each phase.

All sides train the very job that stagedkd's stage makes: same initial weights, batches in the same order, losses,
AdamW groups and schedule. All clips are labelled, and their views are plain. The teacher's weights are random, but its
BatchNorm has the statistics of a batch of noise, so that its maps have ordinary sizes. The learning rate is low, so
that differences of last bits between the sides do not grow. Rivals have torch's default memory layout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from hop_loop import train_by_hand
from safetensors.torch import save_file
from torch import nn

import stagedkd.stages.distill as hop_stage
from stagedkd import load_spec
from stagedkd.experiment.run import locked_plan, run_stage
from stagedkd.models.build import build
from stagedkd.plan.graph import Plan
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.plan.work import DistillWork
from stagedkd.spec.schema import arch_of
from stagedkd.stages.context import Silent
from stagedkd.stages.networks import load_network
from stagedkd.store.store import Artifact
from stagedkd.train.job import Job, Progress

Rival = Callable[[Job, nn.Module], Mapping[str, float]]
SIDES = ("stagedkd", "torchdistill", "loop", "loop-kept")
CLASSES = 8
COMMON = """
data: {{kind: shapes, classes: 8, train: {clips}, val: 8, test: 8}}
clip: {{frames: 8, size: {size}}}
augment: {{crop: 1.0, flip: 0.0, jitter: 0.0}}
labels: {{clean: 1.0}}
train: {{batch: {batch}, lr: 1e-4, weight_decay: 0.05, warmup_epochs: 1}}
teacher: {{{teacher}, weights: teacher.safetensors, epochs: 0}}
student: {{arch: resnet3d, {student}, epochs: {epochs}}}
distill:
  phases:
    grow: {{substages: one_by_one, epochs: 1, train: {{warmup_epochs: 0}}, losses: {{gaussian_w2: 1.0}}}}
    joint: {{losses: {{ce: 0.1, kd: {{weight: 0.9, temperature: 4}}, gaussian_w2: 0.02}}}}
"""
SPECS = {
    "large": COMMON.format(
        clips=16,
        size=56,
        batch=8,
        teacher="arch: r3d_18",
        student="width: 16, blocks: [1, 1, 1, 1], substages: [[stem, layer1], [layer2], [layer3], [layer4]]",
        epochs=24,
    ),
    "quickstart": COMMON.format(
        clips=384,
        size=24,
        batch=32,
        teacher="arch: resnet3d, width: 16, blocks: [1, 1, 1]",
        student="width: 4, blocks: [1, 1, 1], substages: [[stem, layer1], [layer2], [layer3]]",
        epochs=20,
    ),
    "tiny": COMMON.format(
        clips=16,
        size=16,
        batch=8,
        teacher="arch: resnet3d, width: 8, blocks: [1, 1]",
        student="width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]",
        epochs=5,
    ),
}


def write_teacher(folder: Path) -> None:
    """Write the weights of the teacher of the spec in a folder."""
    (folder / "teacher.safetensors").touch()  # the spec names it
    spec = load_spec(folder / "hop.yaml")
    torch.manual_seed(0)
    network = build(arch_of(spec.teacher), CLASSES, root=folder)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(8, 3, spec.clip.frames, 24, 24))
    save_file(network.net.state_dict(), folder / "teacher.safetensors")


def prepare(folder: Path, size: str, *, keep: bool = True) -> tuple[Plan, Runtime, Artifact]:
    """Make everything above the hop. Returns the plan, the runtime and the teacher's artifact.

    Args:
        keep: whether the runtime keeps the teacher's outputs, if this version of stagedkd can.
    """
    (folder / "hop.yaml").write_text(SPECS[size], "utf-8")
    write_teacher(folder)
    kept = {"cache_teacher": "auto" if keep else "off"} if "cache_teacher" in Runtime.model_fields else {}
    runtime = load_runtime(folder, threads=torch.get_num_threads(), device="cpu", **kept)
    plan = locked_plan(load_spec(folder / "hop.yaml"), runtime, Silent())
    above = [stage for stage in plan.closure(plan.stage("student")) if stage.name != "student"]
    artifacts = {stage.name: run_stage(plan, stage, runtime, Silent())[0] for stage in above}
    return plan, runtime, artifacts["teacher"]


def measured(rival: Rival | None, teacher: nn.Module, result: dict[str, Any]) -> Callable[[Job], Progress]:
    """What the stage calls in place of its `fit`: the same, or a rival's training, with the CPU time it takes."""
    own = hop_stage.fit

    def fit(job: Job) -> Progress:
        job.feed.source.views(job.feed.clip_ids.tolist(), 1, 1)  # renders all clips, which then are in memory
        if rival is not None:
            for tensor in (*job.student.parameters(), *job.adapters.parameters()):
                tensor.data = tensor.data.contiguous()  # torch's default layout
        started = time.process_time()
        if rival is None:
            progress = own(job)
            losses = {name: means["total"] for name, means in progress.last.items()}
        else:
            progress, losses = Progress(), rival(job, teacher)
        result["seconds"] = time.process_time() - started
        result["losses"] = dict(losses)
        result["parameters"] = sum(p.numel() for p in job.student.parameters())
        return progress

    return fit


def rival_of(side: str) -> Rival | None:
    """The training of a side; None for stagedkd's own."""
    if side == "torchdistill":
        from hop_torchdistill import train_with_torchdistill

        return train_with_torchdistill
    if side.startswith("loop"):
        return lambda job, teacher: train_by_hand(job, teacher, keep=side == "loop-kept")
    return None


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in SIDES or sys.argv[2] not in SPECS:
        sys.exit(f"usage: hop.py {'|'.join(SIDES)} {'|'.join(SPECS)}")
    side, size = sys.argv[1:]
    rival = rival_of(side)
    result: dict[str, Any] = {"side": side, "size": size, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as name:
        plan, runtime, artifact = prepare(Path(name), size, keep=side == "stagedkd")
        stage = plan.stage("student")
        assert isinstance(stage.work, DistillWork)
        teacher = load_network(artifact, stage.work.teacher, CLASSES, Path(name)).net.eval().requires_grad_(False)
        hop_stage.fit = measured(rival, teacher, result)
        started = time.process_time()
        run_stage(plan, stage, runtime, Silent())
        result["stage_seconds"] = time.process_time() - started
    print(json.dumps(result))


if __name__ == "__main__":
    main()
