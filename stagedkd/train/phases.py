"""What a phase makes of the networks: which blocks run, train and stand frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from stagedkd.models.network import Network
from stagedkd.plan.work import Cut, PhaseWork
from stagedkd.spec.schema import LOGIT_LOSSES, TEACHER_LOSSES
from stagedkd.train.bridge import Bridge


@dataclass(frozen=True)
class Route:
    """The part of both networks that a phase runs: block names at which feature maps are taken, by substage;
    `student_end` the last block run where the head is not; `needs_teacher_logits` for those that compare logits."""

    student_taps: Mapping[int, str]
    teacher_taps: Mapping[int, str]
    student_end: str | None
    needs_teacher: bool
    needs_teacher_logits: bool


def route(phase: PhaseWork, cut: Cut, teacher_cut: Cut) -> Route:
    """Plan the truncated forward of a phase: only the blocks that a loss needs are run, of both networks."""
    return Route(
        student_taps={k: cut[k][-1] for k in sorted({k for k, _ in phase.pairs})},
        teacher_taps={m: teacher_cut[m][-1] for m in sorted({m for _, m in phase.pairs})},
        student_end=cut[max(phase.trained)][-1] if cut else None,
        needs_teacher=bool(phase.losses.on(TEACHER_LOSSES)),
        needs_teacher_logits=bool(phase.losses.on(LOGIT_LOSSES)),
    )


def set_modes(student: Network, bridge: Bridge, phase: PhaseWork, cut: Cut) -> None:
    """Frozen blocks stand in eval without gradients (a frozen BatchNorm must not move); trained ones in train."""
    student.requires_grad_(False).eval()
    bridge.requires_grad_(False).eval()
    trained = [name for k in phase.trained for name in cut[k]] if cut else list(student.blocks)
    modules = [m for name in trained for m in student.block_modules(name)]
    modules += list(student.head_modules) if phase.head else []
    modules += bridge.modules_of(phase)
    for module in modules:
        module.requires_grad_(True).train()


def optimizer(student: Network, bridge: Bridge, phase: PhaseWork) -> torch.optim.Optimizer:
    """AdamW or SGD over what the phase trains; biases and norms are not decayed."""
    train = phase.train
    parameters = [p for p in _parameters(student, bridge) if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
    return torch.optim.AdamW(groups, lr=train.lr)


def _parameters(student: Network, bridge: Bridge) -> Iterator[nn.Parameter]:
    yield from student.parameters()
    yield from bridge.parameters()
