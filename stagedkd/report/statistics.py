"""Intervals, and what a difference over paired seeds shows. Shares and differences are in units of 1, not of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

RESAMPLES = 9_999  # of the bootstrap, and of the test where there are more sign flips than this
DRAW = 0  # the seed of both: a report that is written twice is the same
SAME = 1e-12  # differences of shares that are closer than this differ by rounding alone


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


@dataclass(frozen=True)
class Paired:
    """What `n` pairs say: the mean difference in -1..1, its 95% interval (None for one pair), and the p-value of a
    two-sided sign-flip test (None for one pair). `remark` says what is degenerate about them, "" where nothing is."""

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    n: int
    remark: str = ""


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare shares in 0..1 of the same seeds, `values[i]` with `baseline[i]`.

    The interval is the bootstrap's BCa of the mean difference (Efron & Tibshirani 1993, section 14.3);
    for differences that are all equal it is undefined, and the interval is that point. The test takes the signs of the
    differences as exchangeable (Fisher 1935): p is the share of sign flips whose mean is as far from 0, exact up to 13
    pairs, from 9,999 random flips above (Phipson & Smyth 2010: never 0). Neither depends on the order of the pairs, and
    swapping the two sides mirrors both.

    Raises:
        ValueError: no pair, or sides of unequal length.
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)}")
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean, n = fmean(differences), len(differences)
    if n == 1:
        return Paired(mean, None, None, 1, "one pair: no interval and no test")
    if max(map(abs, differences)) < SAME:
        return Paired(0.0, (0.0, 0.0), 1.0, n, "no pair differs")
    # One order and one orientation for a set of differences and its mirror image, so that both are drawn alike.
    plain, mirrored = sorted(differences), sorted(-d for d in differences)
    chosen, swapped = max((plain, False), (mirrored, True))
    if max(differences) - min(differences) < SAME:
        return Paired(mean, (mean, mean), _sign_flip(chosen), n, "all differences are equal: the interval is a point")
    low, high = _bca(chosen)
    return Paired(mean, (-high, -low) if swapped else (low, high), _sign_flip(chosen), n)


def smallest_p(n: int) -> float:
    """The smallest p-value that a two-sided sign-flip test of n pairs can give: 2 of the 2^n sign flips."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979) in the order given: the k-th smallest of m p-values times m - k + 1,
    never below the one before it, at most 1. It holds the chance of any false finding among the m."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _bca(differences: Sequence[float]) -> tuple[float, float]:
    import numpy as np
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = stats
    found = untyped.bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="BCa", batch=1000, rng=DRAW)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sign_flip(differences: Sequence[float]) -> float:
    import numpy as np
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    numbers: Any = np
    untyped: Any = stats

    def total(flipped: Any, axis: int) -> Any:
        return numbers.round(numbers.sum(flipped, axis=axis), 12)  # sums that are equal but for rounding are ties

    found = untyped.permutation_test(
        (differences,), total, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, batch=1000, rng=DRAW
    )
    return float(found.pvalue)
