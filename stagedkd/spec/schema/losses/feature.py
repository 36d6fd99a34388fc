"""Losses that compare features position by position."""

from __future__ import annotations

from typing import Any, Literal

from stagedkd.spec.schema.losses.base import Loss, Temperature
from stagedkd.spec.schema.losses.paired import PairedLoss


class Hint(PairedLoss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""

    compares = "projected"

    scale: Literal["teacher_variance"] | None = None
    """teacher_variance: divide by the variance of the teacher's features (our formulation)."""


class At(PairedLoss):
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference between attention maps."""

    compares = "paired"
    needs_positions = True


class Review(PairedLoss):
    """ReviewKD's hierarchical context loss, Chen et al. 2021: mean squared error on increasingly coarse grids."""

    compares = "projected"


class Graft(Loss):
    """Grafting (our formulation, after Shen et al. 2021): the student up to a substage, then the frozen teacher's later
    blocks and head; temperature^2 * KL(teacher || grafted network). It needs a teacher that runs in training."""

    compares = "graft"

    temperature: Temperature = 4.0
    """Divisor of the logits of both networks."""
    draw: Literal["one", "all"] = "one"
    """Substages that are grafted in a step. one: a substage drawn for each step. all: the mean over all."""

    @property
    def params(self) -> dict[str, Any]:
        return {"temperature": self.temperature}
