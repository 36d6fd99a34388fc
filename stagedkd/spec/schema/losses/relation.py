"""Losses that compare the relations between clips, or contrast them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stagedkd.spec.schema.losses.base import Compares, Factor, Loss, Temperature
from stagedkd.spec.schema.losses.paired import PairedLoss


class Sp(PairedLoss):
    """Similarity-preserving KD, Tung & Mori 2019: squared difference between the Gram matrices of the batch."""

    compares = "paired"


class Rkd(PairedLoss):
    """Relational KD, Park et al. 2019: differences of the distances and angles between the clips of a batch."""

    compares = "paired"

    alpha: Factor = 1.0
    """Weight of the distances."""
    beta: Factor = 2.0
    """Weight of the angles."""

    @property
    def least_batch(self) -> int:
        return 2


class Pkt(PairedLoss):
    """Probabilistic knowledge transfer, Passalis & Tefas 2018: divergence between the neighbourhoods within the
    batch."""

    compares = "paired"


class Cka(PairedLoss):
    """One minus the linear centred kernel alignment of the batch (Kornblith et al. 2019)."""

    compares = "paired"

    debiased: bool = True
    """Use the debiased estimator (Nguyen et al. 2021), which needs batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class StageCka(Loss):
    """Squared difference between two matrices, one for each network: the alignment between its substages (our
    formulation)."""

    compares = "substages"

    debiased: bool = True
    """Use the debiased estimator (Nguyen et al. 2021), which needs batches of 4 or more."""

    @property
    def least_batch(self) -> int:
        return 4 if self.debiased else 2


class Crd(Loss):
    """Contrastive representation distillation, Tian et al. 2020, on the deepest pair."""

    compares = "deepest"

    embedding: Annotated[int, Field(ge=2, le=4096)] = 128
    """Width of the space in which features are compared."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Number of other clips with which each clip is contrasted."""
    temperature: Temperature = 0.07
    """Divisor of the similarities."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of the old embedding of a clip in the memory when the clip is seen again."""
    taps: Literal["deepest", "embedding"] | None = None
    """The features that are compared. deepest: the last pair of the phase, averaged over its grid. embedding: the
    pooled feature in front of the head of each network, without substages. Unset: deepest."""

    @property
    def compared(self) -> Compares:
        return "embedding" if self.taps == "embedding" else self.compares

    @property
    def params(self) -> dict[str, Any]:
        return self.model_dump(exclude={*Loss.model_fields, "taps"})

    @property
    def least_batch(self) -> int:
        return 2
