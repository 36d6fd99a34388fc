"""One training step: the terms of the loss, their weighted sum, backward, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from stagedkd.data.mix import Batch
from stagedkd.errors import TrainingError
from stagedkd.plan.work import PhaseWork
from stagedkd.train.phases import Route
from stagedkd.train.terms import Cast, Moment, loss_parts

Weigh = Callable[[Mapping[str, float]], Mapping[str, float]]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pieces:
    """Everything that a step touches."""

    cast: Cast
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


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


def train_step(
    pieces: Pieces, phase: PhaseWork, route: Route, batch: Batch, moment: Moment, weigh: Weigh
) -> dict[str, float]:
    """Take one step. `weigh` gives the factor of each loss from the losses' values.

    Returns:
        the value of every loss, unweighted, and their weighted `total`.
    Raises:
        TrainingError: a loss is not finite; nothing was updated.
    """
    dtype = AUTOCAST.get(phase.train.precision)
    with torch.autocast(pieces.cast.device.type, dtype=dtype, enabled=dtype is not None):
        parts = loss_parts(pieces.cast, phase, route, batch, moment)
    values: dict[str, float] = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"loss '{name}' is {value}")
    weights = weigh(values)
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    pieces.optimizer.zero_grad(set_to_none=True)
    pieces.scaler.scale(total).backward()
    pieces.cast.ranks.add_gradients(pieces.parameters, pieces.cast.bridge.parameters())
    if phase.train.clip_grad:
        pieces.scaler.unscale_(pieces.optimizer)
        nn.utils.clip_grad_norm_(pieces.parameters, phase.train.clip_grad)
    pieces.scaler.step(pieces.optimizer)
    pieces.scaler.update()
    return values | {"total": math.fsum(weights[name] * value for name, value in values.items())}
