"""Losses that compare distributions of features."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Count
from stagedkd.spec.schema.losses.base import Factor, Samples
from stagedkd.spec.schema.losses.paired import PairedLoss

Cells: TypeAlias = tuple[Count, Count, Count]


class DistributionLoss(PairedLoss):
    """A loss between distributions of features, over the whole grid or in cells of it."""

    compares = "projected"

    cells: Cells | None = None
    """Numbers of cells [T, H, W] into which the common grid is divided, each with a distribution of its own; the loss
    is the mean over cells. Unset: one cell. Without cells in time, the order of the frames does not count."""

    @model_validator(mode="after")
    def _cells_fit_samples(self) -> Self:
        samples = getattr(self, "samples", None)
        if self.taps == "embedding" and (self.cells or samples in ("positions", "frames")):
            field = "cells" if self.cells else f"samples: {samples}"
            raise ValueError(f"an embedding has one position, so {field} cannot be used with taps: embedding")
        if samples == "frames" and self.cells and self.cells[0] != 1:
            raise ValueError("with samples: frames each frame stands alone: the first number of cells must be 1")
        return self


class GaussianW2(DistributionLoss):
    """2-Wasserstein distance between Gaussians of the channels (our formulation; the feature part of WKD, Lv et al.
    2024)."""

    compares = "projected"

    gamma: Factor = 1.0
    """Weight of the means relative to the deviations. 1: the closed form. 2: WKD-F."""
    samples: Samples = "auto"
    """Samples of the Gaussians. positions: the positions of a clip. frames: those of a frame. batch: those of all clips
    of the batch. auto: positions if a clip, or a cell of it, has more than one."""
    scale: Literal["teacher_variance"] | None = None
    """teacher_variance: divide by the variance of the teacher's features, summed over channels (our formulation)."""


class GaussianKl(DistributionLoss):
    """KL divergence between Gaussians of the channels (our formulation)."""

    compares = "projected"

    samples: Samples = "auto"
    """Samples of the Gaussians. positions: the positions of a clip. frames: those of a frame. batch: those of all clips
    of the batch. auto: positions if a clip, or a cell of it, has more than one."""


class Mmd(DistributionLoss):
    """Squared maximum mean discrepancy with RBF kernels (Gretton et al. 2012), as a paired U-statistic."""

    compares = "projected"

    bandwidths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (
        0.5,
        1.0,
        2.0,
    )
    """Bandwidths of the kernels, in units of the mean squared distance."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of a clip. frames: those of a frame. batch: the mean
    features of the clips. auto: positions if a clip, or a cell of it, has more than one."""


class Nst(PairedLoss):
    """Neuron selectivity transfer, Huang & Wang 2017: MMD between the maps of the channels, with a polynomial
    kernel."""

    compares = "paired"
    needs_positions = True


class Coral(DistributionLoss):
    """Deep CORAL, Sun & Saenko 2016: difference between covariances, and between means (our addition)."""

    compares = "projected"

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the diagonal of the covariances that is mixed in if there are no more samples than channels."""
    samples: Literal["positions", "frames", "batch"] | None = None
    """Samples of the covariances. positions: the positions of a clip. frames: those of a frame. batch: those of all
    clips of the batch. Unset: batch."""


class SlicedW2(DistributionLoss):
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015)."""

    compares = "projected"

    directions: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Number of random directions of projection, which are drawn again in each step."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of a clip. frames: those of a frame. batch: the mean
    features of the clips. auto: positions if a clip, or a cell of it, has more than one."""
