"""Losses that compare distributions of features."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stagedkd.spec.schema.losses.base import Factor, Loss, Samples


class GaussianW2(Loss):
    """2-Wasserstein distance between Gaussians of the channels (our formulation; the feature part of WKD, Lv et al.
    2024)."""

    compares = "projected"

    gamma: Factor = 1.0
    """Weight of the means relative to the deviations. 1: the closed form. 2: WKD-F."""
    samples: Samples = "auto"
    """Axis of the statistics. positions: the positions of a clip. batch: the clips of the batch. auto: positions if a
    map has more than one."""


class GaussianKl(Loss):
    """KL divergence between Gaussians of the channels (our formulation)."""

    compares = "projected"

    samples: Samples = "auto"
    """Axis of the statistics. positions: the positions of a clip. batch: the clips of the batch. auto: positions if a
    map has more than one."""


class Mmd(Loss):
    """Squared maximum mean discrepancy with RBF kernels (Gretton et al. 2012), as a paired U-statistic."""

    compares = "projected"

    bandwidths: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=16)] = (
        0.5,
        1.0,
        2.0,
    )
    """Bandwidths of the kernels, in units of the mean squared distance."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of each clip. batch: the mean features of the clips. auto:
    positions if a map has more than one."""


class Nst(Loss):
    """Neuron selectivity transfer, Huang & Wang 2017: MMD between the maps of the channels, with a polynomial
    kernel."""

    compares = "paired"


class Coral(Loss):
    """Deep CORAL, Sun & Saenko 2016: difference between covariances, and between means (our addition)."""

    compares = "projected"

    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the diagonal of the covariances that is mixed in if there are no more samples than channels."""


class SlicedW2(Loss):
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015)."""

    compares = "projected"

    directions: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Number of random directions of projection, which are drawn again in each step."""
    samples: Samples = "auto"
    """Samples of the distributions. positions: the positions of each clip. batch: the mean features of the clips. auto:
    positions if a map has more than one."""
