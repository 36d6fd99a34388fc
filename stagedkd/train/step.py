"""One training step: forward, losses by name, backward, update.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.data.views import fit_input
from stagedkd.errors import TrainingError
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import LOGIT_LOSSES, PROJECTED_LOSSES, Input
from stagedkd.train.phases import Route

Forward = Callable[..., tuple[dict[str, Tensor], Tensor | None]]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pieces:
    """Everything a step touches. `student` and `teacher` are the networks' `run`, compiled or not."""

    student: Forward
    teacher: Forward | None
    lifts: nn.ModuleDict
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    student_input: Input | None = None
    teacher_input: Input | None = None

    def seen(self, clip_B3THW: Tensor, by: Input | None) -> Tensor:
        """The shared view as a network sees it."""
        made = fit_input(clip_B3THW, by)
        return made.contiguous(memory_format=torch.channels_last_3d) if self.device.type == "cuda" else made


@contextmanager
def sound_backend(device: torch.device, precision: str) -> Generator[None]:
    """Half types on the CPU run without oneDNN: its bf16 gradients of small 3-D convolutions held garbage (measured,
    docs/decisions/0005)."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not (device.type == "cpu" and precision != "fp32")
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def train_step(pieces: Pieces, phase: PhaseWork, route: Route, batch: Batch) -> dict[str, float]:
    """Take one step.

    Returns:
        the value of every loss, unweighted, and their weighted `total`.
    Raises:
        TrainingError: a loss is not finite; nothing was updated.
    """
    dtype = AUTOCAST.get(phase.train.precision)
    with torch.autocast(pieces.device.type, dtype=dtype, enabled=dtype is not None):
        parts = loss_parts(pieces, phase, route, batch)
    weights = {name: loss.weight for name, loss in phase.losses.named().items()}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    values = dict(zip([*parts, "total"], torch.stack([*parts.values(), total]).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"loss '{name}' is {value}")
    pieces.optimizer.zero_grad(set_to_none=True)
    pieces.scaler.scale(total).backward()
    if phase.train.clip_grad:
        pieces.scaler.unscale_(pieces.optimizer)
        nn.utils.clip_grad_norm_(pieces.parameters, phase.train.clip_grad)
    pieces.scaler.step(pieces.optimizer)
    pieces.scaler.update()
    return values


def loss_parts(pieces: Pieces, phase: PhaseWork, route: Route, batch: Batch) -> dict[str, Tensor]:
    """The unweighted losses of a phase by name, in the order of the schema. Feature losses are means over the pairs."""
    mine_B3THW = pieces.seen(batch.clip_B3THW, pieces.student_input)
    feats, logits = pieces.student(
        mine_B3THW, upto=route.student_end, taps=tuple(route.student_taps.values()), head=phase.head
    )
    teacher_feats: dict[str, Tensor] = {}
    teacher_logits: Tensor | None = None
    if route.needs_teacher:
        assert pieces.teacher is not None
        same = pieces.student_input == pieces.teacher_input
        theirs_B3THW = mine_B3THW if same else pieces.seen(batch.clip_B3THW, pieces.teacher_input)
        with torch.no_grad():
            teacher_feats, teacher_logits = pieces.teacher(
                theirs_B3THW, upto=None, taps=tuple(route.teacher_taps.values()), head=route.needs_teacher_logits
            )
    parts: dict[str, Tensor] = {}
    for name, loss in phase.losses.named().items():
        params = loss.model_dump(exclude={"weight"})
        if name == "ce":
            assert logits is not None
            parts[name] = losses.ce(logits, batch.labels_B, **params)
            if batch.other_B is not None:  # of a mixed batch, each label counts by its share
                other = losses.ce(logits, batch.other_B, **params)
                parts[name] = batch.share * parts[name] + (1 - batch.share) * other
        elif name in LOGIT_LOSSES:
            assert logits is not None and teacher_logits is not None
            labels = (batch.labels_B,) if name == "dkd" else ()
            parts[name] = getattr(losses, name)(logits, teacher_logits, *labels, **params)
        else:
            each: list[Tensor] = []
            for k in phase.pairs:
                mine, theirs = losses.pool_to_common(feats[route.student_taps[k]], teacher_feats[route.teacher_taps[k]])
                mine = pieces.lifts[str(k)](mine) if name in PROJECTED_LOSSES else mine
                each.append(getattr(losses, name)(mine, theirs, **params))
            parts[name] = torch.stack(each).mean()
    return parts
