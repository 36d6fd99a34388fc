"""Schedules over a phase or a hop: the learning rate, the weights of the losses, the ramp of the pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Loss, Train


def step_rate(phases: Sequence[PhaseWork], number: int, step: int, epoch_steps: int) -> float:
    """The learning rate of a step: over its phase (see `learning_rate`), or over the hop (see `hop_rate`).

    Args:
        number: of the phase in the training, from 0. step: number in the phase, from 0.
        epoch_steps: steps of an epoch of this phase.
    """
    phase = phases[number]
    if not phase.train.over_hop:  # a stopped teacher runs fewer epochs than its schedule is made for
        return learning_rate(phase.train, step, phase.epochs * epoch_steps, epoch_steps)
    before, total = sum(p.epochs for p in phases[:number]), _hop_epochs(phases)
    return hop_rate(phase.train, before + step / epoch_steps, total, 1 / epoch_steps)


def _hop_epochs(phases: Sequence[PhaseWork]) -> int:
    """The epochs that a schedule over the hop spans: all but a last phase of int8, which has its own."""
    return sum(phase.epochs for phase in phases if phase.train.over_hop)


def hop_rate(train: Train, epoch: float, epochs: int, step: float = 0.0) -> float:
    """The learning rate of a schedule over a hop: linear warm-up from 0 over `warmup_epochs`, then cosine to 0 or
    constant. The position counts epochs, so phases may have unequal numbers of steps in an epoch.

    Args:
        train: the settings of the phase; its `lr` is the peak.
        epoch: the position in the hop, from 0, with fractions. epochs: of the whole hop.
        step: the length of a step in epochs; the warm-up gives a step the rate of its end, so that none has 0.
    """
    if epoch < train.warmup_epochs:
        return train.lr * min(1.0, (epoch + step) / train.warmup_epochs)
    if train.shape == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + math.cos(math.pi * (epoch - train.warmup_epochs) / (epochs - train.warmup_epochs)))


def phase_rates(phases: Sequence[PhaseWork], number: int) -> tuple[float, float, float]:
    """The learning rate at the start, at the peak and at the end of a phase, for steps that are short beside an epoch:
    a warm-up starts from 0, and a cosine over the phase ends at 0 (or higher, where the training is stopped)."""
    phase = phases[number]
    hop = phase.train.over_hop
    first, total = (sum(p.epochs for p in phases[:number]), _hop_epochs(phases)) if hop else (0, phase.epochs)
    last, warmup = first + phase.run_epochs, phase.train.warmup_epochs
    start, end = hop_rate(phase.train, first, total), hop_rate(phase.train, last, total)
    return start, hop_rate(phase.train, min(max(warmup, first), last), total), end


def learning_rate(train: Train, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate: linear warm-up from 0 over `warmup_epochs`, then cosine to 0 (Loshchilov & Hutter 2017) or
    constant.

    Args:
        step: number in the phase, from 0. steps: number of steps of the phase.
    """
    warmup = min(steps - 1, round(train.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.shape == "constant":
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
