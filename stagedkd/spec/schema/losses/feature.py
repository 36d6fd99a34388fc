"""Losses that compare features position by position."""

from __future__ import annotations

from stagedkd.spec.schema.losses.base import Loss


class Hint(Loss):
    """FitNets, Romero et al. 2015: mean squared error of the features."""

    compares = "projected"


class At(Loss):
    """Attention transfer, Zagoruyko & Komodakis 2017: squared difference between attention maps."""

    compares = "paired"


class Review(Loss):
    """ReviewKD's hierarchical context loss, Chen et al. 2021: mean squared error on increasingly coarse grids."""

    compares = "projected"
