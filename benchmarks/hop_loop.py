"""The hop of `benchmarks/hop.py` as a careful person writes it by hand in PyTorch; the teacher's outputs kept or not.

Shape legend: B clips, C channels, T frames, H, W positions, N classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Input, Train
from stagedkd.train.job import Job

TEMPERATURE, CE, KD, LOGITS = 4.0, 0.1, 0.9, "logits"
Outputs = dict[str, Tensor]  # feature maps (B, C, T, H, W) by block, and "logits" (B, N)
Teacher = Callable[[Tensor, Tensor, list[str]], Outputs]  # (clips, rows, names) -> outputs


def normalised(clip_B3THW: Tensor) -> Tensor:
    """The input of both networks, in torch's default layout."""
    mean_3111, deviation_3111 = (torch.tensor(x).view(3, 1, 1, 1) for x in Input().statistics)
    return (clip_B3THW - mean_3111) / deviation_3111


def gaussian_w2(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of diagonal Gaussians over the positions of each clip, mean over the clips."""
    (mean_s, deviation_s), (mean_t, deviation_t) = (_moments(x) for x in (student_BCTHW, teacher_BCTHW))
    return ((mean_s - mean_t).square() + (deviation_s - deviation_t).square()).sum(1).mean()


def _moments(feat_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    return feat_BCTHW.mean((2, 3, 4)), (feat_BCTHW.var((2, 3, 4), correction=0) + 1e-5).sqrt()


def parameter_groups(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """The groups of AdamW: biases and norms have no weight decay."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """The part of the peak learning rate at a step: linear warm-up, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmup_steps(train: Train, steps: int, epoch_steps: int) -> int:
    """The steps of the warm-up of a phase."""
    return min(steps - 1, round(train.warmup_epochs * epoch_steps))


def blocks_of(cut: Iterable[Iterable[str]], phase: PhaseWork, side: int) -> list[str]:
    """The blocks that a phase runs: up to the deepest substage that is compared, or all.

    Args:
        cut: of the network. side: 0 for the student, 1 for the teacher.
    """
    runs = [list(run) for run in cut]
    last = len(runs) if phase.head else 1 + max(pair[side] for pair in phase.pairs)
    return list(chain.from_iterable(runs[:last]))


def forward(net: nn.Module, clip_B3THW: Tensor, blocks: list[str], names: Iterable[str]) -> Outputs:
    """Run the blocks, and the head if the logits are among `names`."""
    outputs, x = Outputs(), clip_B3THW
    for block in blocks:
        x = net.get_submodule(block)(x)
        outputs[block] = x
    if LOGITS in (wanted := set(names)):
        outputs[LOGITS] = net.get_submodule("fc")(x.mean((2, 3, 4)))
    return {name: outputs[name] for name in wanted}


def live(net: nn.Module, blocks: list[str]) -> Teacher:
    """A teacher that runs in every step."""

    def outputs(clip_B3THW: Tensor, rows_B: Tensor, names: list[str]) -> Outputs:
        with torch.no_grad():
            return forward(net, clip_B3THW, blocks, names)

    return outputs


def kept(net: nn.Module, blocks: list[str], memory: dict[str, Tensor], clips: int) -> Teacher:
    """A teacher that runs once for each of the `clips` training clips and output; `memory` holds the outputs by row."""

    def outputs(clip_B3THW: Tensor, rows_B: Tensor, names: list[str]) -> Outputs:
        if all(name in memory and not memory[name][rows_B].isnan().any() for name in names):
            return {name: memory[name][rows_B] for name in names}
        made = live(net, blocks)(clip_B3THW, rows_B, names)
        for name, value in made.items():
            if name not in memory:
                memory[name] = torch.full((clips, *value.shape[1:]), math.nan)
            memory[name][rows_B] = value
        return made

    return outputs


def freeze_all_but(job: Job, phase: PhaseWork) -> Iterator[nn.Parameter]:
    """Put what the phase trains into train mode and the rest into eval mode; give the parameters that are trained."""
    trained = [name for k in phase.trained for name in job.cut[k]] + (["fc"] if phase.head else [])
    modules = [job.student.net.get_submodule(name) for name in trained]
    modules += [job.adapters.projectors[projector_name(pair)] for pair in phase.pairs]
    for module in (job.student.net, job.adapters):
        module.requires_grad_(False).eval()
    for module in modules:
        module.requires_grad_(True).train()
        yield from module.parameters()


def projector_name(pair: tuple[int, int]) -> str:
    """The name of the projector of a pair in `job.adapters.projectors`."""
    return f"{pair[0] + 1}-{pair[1] + 1}"


def feature_weight(phase: PhaseWork) -> float:
    """The weight of the feature loss of a phase, which is the mean over its pairs."""
    assert phase.losses.gaussian_w2 is not None
    return phase.losses.gaussian_w2.weight


def train_by_hand(job: Job, teacher: nn.Module, keep: bool) -> Mapping[str, float]:
    """Train the hop. Returns the mean of the weighted loss over the last epoch of each phase."""
    memory, ends = dict[str, Tensor](), dict[str, float]()
    for number, phase in enumerate(job.phases):
        blocks = blocks_of(job.teacher_cut, phase, 1)
        guide = kept(teacher, blocks, memory, len(job.feed.clip_ids)) if keep else live(teacher, blocks)
        ends[phase.name] = _train_phase(job, number, guide)
    return ends


def _train_phase(job: Job, number: int, teacher: Teacher) -> float:
    phase, student, projectors = job.phases[number], job.student.net, job.adapters.projectors
    trained = list(freeze_all_but(job, phase))
    optimizer = torch.optim.AdamW(parameter_groups(trained, phase.train.weight_decay), lr=phase.train.lr)
    epoch_steps = job.feed.steps(phase)
    steps = phase.run_epochs * epoch_steps
    warmup = warmup_steps(phase.train, steps, epoch_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, warmup))
    blocks = blocks_of(job.cut, phase, 0)
    maps = [(job.cut[k][-1], job.teacher_cut[m][-1], projector_name((k, m))) for k, m in phase.pairs]
    logits = [LOGITS] if phase.head else []
    totals: list[float] = []
    batches = job.feed.batches(phase, number, 0, torch.device("cpu"))
    for _ in range(steps):
        batch, _ = next(batches)
        assert batch.rows_B is not None
        clip = normalised(batch.clip_B3THW)
        theirs = teacher(clip, batch.rows_B, [m for _, m, _ in maps] + logits)
        ours = forward(student, clip, blocks, [k for k, _, _ in maps] + logits)
        distances = [gaussian_w2(projectors[name](ours[k]), theirs[m]) for k, m, name in maps]
        loss = feature_weight(phase) / len(maps) * sum(distances, torch.zeros(()))
        if phase.head:
            log_s, log_t = (F.log_softmax(x[LOGITS] / TEMPERATURE, 1) for x in (ours, theirs))
            soft = TEMPERATURE**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
            loss = loss + CE * F.cross_entropy(ours[LOGITS], batch.labels_B) + KD * soft
        optimizer.zero_grad()
        loss.backward()
        if phase.train.clip_grad:
            nn.utils.clip_grad_norm_(trained, phase.train.clip_grad)
        optimizer.step()
        scheduler.step()
        totals.append(loss.item())
    batches.close()
    return sum(totals[-epoch_steps:]) / epoch_steps
