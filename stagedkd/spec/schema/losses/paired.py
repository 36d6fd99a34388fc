"""What the losses on pairs of feature maps have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from stagedkd.spec.schema.losses.base import Compares, Loss


class PairedLoss(Loss):
    """A loss that is computed for each pair of feature maps, or for the embeddings of both networks."""

    needs_positions: ClassVar[bool] = False  # a loss that says nothing about one position alone
    reduce: Literal["mean", "sum"] | None = None
    """How the losses of several pairs become one. mean: their mean. sum: their sum. Unset: mean."""
    taps: Literal["all", "deepest", "embedding"] | None = None
    """The features that are compared. all: every pair of the phase. deepest: its last pair. embedding: the pooled
    feature in front of the head of each network, (B, C), without substages. Unset: all."""

    @model_validator(mode="after")
    def _taps_have_positions(self) -> Self:
        if self.needs_positions and self.taps == "embedding":
            raise ValueError("this loss compares positions, and an embedding has one: use taps: deepest")
        return self

    @property
    def compared(self) -> Compares:
        if self.taps != "embedding":
            return self.compares
        return "projected_embedding" if self.compares == "projected" else "embedding"

    @property
    def least_batch(self) -> int:
        return 2 if self.taps == "embedding" else 1

    @property
    def params(self) -> dict[str, Any]:
        return self.model_dump(exclude={*PairedLoss.model_fields})
