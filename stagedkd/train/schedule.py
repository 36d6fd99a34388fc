"""Schedules over a phase: the learning rate, the weights of the losses, the ramp of the pairs."""

from __future__ import annotations

import math

from stagedkd.spec.schema import Loss, Train


def learning_rate(train: Train, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate: linear warm-up from 0 over `warmup_epochs`, then cosine to 0 (Loshchilov & Hutter 2017) or
    constant.

    Args:
        step: number in the phase, from 0. steps: number of steps of the phase.
    """
    warmup = min(steps - 1, round(train.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def loss_weight(loss: Loss, epoch: float, epochs: int) -> float:
    """The weight of a loss at `epoch` (from 0, with fractions) of a phase of `epochs`."""
    weight = loss.weight
    if loss.to is not None:
        done = min(1.0, epoch / epochs)
        done = done if loss.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * done))
        weight += (loss.to - weight) * done
    warmup = loss.warmup_share * epochs if loss.warmup_share else loss.warmup_epochs
    return weight * min(1.0, epoch / warmup) if warmup else weight


def ramp(place: int, epoch: float, epochs: float | None) -> float:
    """The factor of pair `place` (j, from 0): r_j(e) = clip((e - j * ramp) / ramp, 0, 1); 1 without a ramp."""
    return 1.0 if epochs is None else min(1.0, max(0.0, (epoch - place * epochs) / epochs))
