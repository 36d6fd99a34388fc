"""Losses that compare the logits of the student with a guide's."""

from __future__ import annotations

from stagedkd.spec.schema.losses.base import Factor, Loss, Temperature


class Kd(Loss):
    """Knowledge distillation, Hinton et al. 2015: temperature^2 * KL(teacher || student)."""

    compares = "logits"

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dkd(Loss):
    """Decoupled KD, Zhao et al. 2022: separate terms for the target class and for the other classes. For a clip without
    a label, the target is the class that the teacher predicts."""

    compares = "logits"
    takes_labels = True

    alpha: Factor = 1.0
    """Weight of the term that compares the target class with all others."""
    beta: Factor = 8.0
    """Weight of the term that compares the other classes with each other."""
    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""


class Dist(Loss):
    """DIST, Huang et al. 2022: one minus the correlation of probabilities, over the classes and over the clips."""

    compares = "logits"

    beta: Factor = 1.0
    """Weight of the correlation over the classes, for each clip."""
    gamma: Factor = 1.0
    """Weight of the correlation over the clips, for each class."""
    temperature: Temperature = 1.0
    """Divisor of the logits of both networks."""


class LogitStd(Loss):
    """Knowledge distillation on standardised logits, Sun et al. 2024."""

    compares = "logits"

    temperature: Temperature = 2.0
    """Divisor of the standardised logits of both networks."""
