"""Intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def wilson(right: int, of: int, z: float = 1.959963985) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927), clips taken as independent. (0, 1) for no clips."""
    if of == 0:
        return 0.0, 1.0
    share, extra = right / of, z * z / of
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / of + extra / (4 * of)) / (1 + extra)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of a mean over two or more seeds, cut to 0..1."""
    from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    quantile = float(t.ppf(0.975, len(values) - 1))  # pyright: ignore[reportUnknownMemberType]
    half = quantile * stdev(values) / math.sqrt(len(values))
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)
