"""The parts of a phase: which blocks it trains, freezes and runs, and its optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from stagedkd.models.network import Network
from stagedkd.plan.kind import Cut, PhaseWork
from stagedkd.spec.pairing import graft_pairs
from stagedkd.spec.schema import EMBEDDED, FEATURES, GRAFT, WITH_TEACHER
from stagedkd.train.adapters import FeatureAdapters


@dataclass(frozen=True)
class ForwardPlan:
    """The part of both networks that a phase runs.

    `student_taps` and `teacher_taps` name the blocks whose feature maps are used, by substage. `student_end` is the
    last block that runs if the head does not; None runs all. `needs_teacher`: a loss needs maps or logits of the
    guides. `needs_teacher_logits`: a loss compares logits, or clips are weighed by those of the guides. `embedding`: a
    loss compares the pooled features in front of the heads, so that all blocks of both networks run. `grafts`: the
    pairs of substages that are grafted; behind the student's substage run the teacher's later blocks and its head.
    `exits`: the student's blocks behind which `ofa` has an exit. `positions`: `sdd` needs the logits of every position.
    """

    student_taps: Mapping[int, str]
    teacher_taps: Mapping[int, str]
    student_end: str | None
    needs_teacher: bool
    needs_teacher_logits: bool
    embedding: bool = False
    grafts: tuple[tuple[int, int], ...] = ()
    exits: tuple[str, ...] = ()
    positions: bool = False


def plan_forward(phase: PhaseWork, cut: Cut, teacher_cut: Cut) -> ForwardPlan:
    """Plan the truncated forward pass of a phase: both networks run only the blocks that a loss needs."""
    on_maps = bool(phase.losses.comparing(FEATURES - GRAFT))
    embedding, grafted = bool(phase.losses.comparing(EMBEDDED)), bool(phase.losses.comparing(GRAFT))
    grafts = graft_pairs(phase.pairs, len(cut), len(teacher_cut)) if grafted else ()
    pairs = phase.pairs if on_maps else grafts  # the teacher's maps give a graft their grids
    return ForwardPlan(
        student_taps={k: cut[k][-1] for k in sorted({k for k, _ in pairs})},
        teacher_taps={m: teacher_cut[m][-1] for m in sorted({m for _, m in pairs})},
        student_end=cut[max(phase.trained, default=-1)][-1] if cut else None,
        needs_teacher=bool(phase.losses.comparing(WITH_TEACHER)) or phase.losses.needs_guide_logits,
        needs_teacher_logits=phase.losses.needs_guide_logits,
        embedding=embedding,
        grafts=grafts,
        exits=tuple(run[-1] for run in cut) if phase.losses.ofa else (),
        positions=phase.losses.sdd is not None,
    )


def set_modes(student: Network, adapters: FeatureAdapters, phase: PhaseWork, cut: Cut) -> None:
    """Put the trained blocks into train mode, and the frozen ones into eval mode without gradients, since the
    statistics of a frozen BatchNorm must not change. Nor may any in a phase of int8, whose runtime folds them."""
    student.requires_grad_(False).eval()
    adapters.requires_grad_(False).eval()
    whole = list(student.blocks) if phase.trained else []  # () trains the head alone
    trained = [name for k in phase.trained for name in cut[k]] if cut else whole
    modules = [m for name in trained for m in student.block_modules(name)]
    modules += list(student.head_modules) if phase.head else []
    modules += adapters.modules_of(phase)
    for module in modules:
        module.requires_grad_(True).train()
    for module in student.modules() if phase.quantised else ():
        if isinstance(module, _BatchNorm):
            module.eval()


def optimizer(student: Network, adapters: FeatureAdapters, phase: PhaseWork) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that the phase trains; biases and norms have no weight decay."""
    train = phase.train
    parameters = [p for p in _parameters(student, adapters) if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=train.lr, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, each tensor in the memory layout of its parameter. A fused step walks through
    memory: on a CPU it would silently mix up elements of other layouts (docs/findings.md)."""
    optimizer.load_state_dict(state)
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _parameters(student: Network, adapters: FeatureAdapters) -> Iterator[nn.Parameter]:
    yield from student.parameters()
    yield from adapters.parameters()
