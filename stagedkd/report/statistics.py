"""Intervals, and tests of differences over paired seeds. Fractions and differences are in units of 1, not in points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

RESAMPLES = 9_999  # in the bootstrap, and in the test where there are more sign flips than this
SEED = 0  # the seed of both, so that a report that is written twice is the same
FAILED = 0.8  # a seed has failed if its accuracy is below this share of the median over seeds
SAME = 1e-12  # differences closer than this differ only by rounding


def wilson(right: int, total: int, z: float = 1.959963985) -> tuple[float, float]:
    """Return Wilson's 95% interval of a fraction (Wilson 1927), for independent clips; (0, 1) for no clips."""
    if total == 0:
        return 0.0, 1.0
    fraction, extra = right / total, z * z / total
    centre = (fraction + extra / 2) / (1 + extra)
    half = z * math.sqrt(fraction * (1 - fraction) / total + extra / (4 * total)) / (1 + extra)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_clips(first: int, second: int, total: int, z: float = 1.959963985) -> tuple[float, float, float]:
    """Compare two networks on the same clips, taken as independent.

    Args:
        first, second: clips that only the first network has right, and only the second. total: all clips, at least 1.
    Returns:
        the difference of their accuracies in -1..1, and its 95% interval: Wald's, with one clip added to each count
        (Bonett & Price 2012), clipped to -1..1.
    """
    a, b = (first + 1) / (total + 2), (second + 1) / (total + 2)
    half = z * math.sqrt(max(0.0, a + b - (a - b) ** 2) / (total + 2))
    return (first - second) / total, max(-1.0, a - b - half), min(1.0, a - b + half)


def near_chance(interval: tuple[float, float], classes: int, commonest: float | None) -> bool:
    """Return whether a network may be no better than one that ignores the clips: the lower end of its accuracy's
    interval is not above 1 / `classes`, nor above the share of the commonest class among the clips (None: unknown)."""
    return interval[0] <= max(1 / max(1, classes), commonest or 0.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95% interval of a mean over two or more seeds, clipped to 0..1."""
    from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    quantile = float(t.ppf(0.975, len(values) - 1))  # pyright: ignore[reportUnknownMemberType]
    half = quantile * stdev(values) / math.sqrt(len(values))
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


def iqm(values: Sequence[float]) -> float:
    """Return the interquartile mean (Agarwal et al. 2021): the mean of the middle half of the sorted values.

    A quarter of n values is cut from each end. Where n is no multiple of 4, the two outermost values that remain count
    in part: of 3 values, the middle one counts fully and each other one by a quarter.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value has no mean")
    ordered, cut = sorted(values), len(values) / 4
    weights = [min(i + 1, len(values) - cut) - max(i, cut) for i in range(len(values))]
    kept = [(max(0.0, weight), value) for weight, value in zip(weights, ordered, strict=True)]
    return sum(weight * value for weight, value in kept) / sum(weight for weight, _ in kept)


def failed_seeds(values: Sequence[float]) -> int:
    """Return how many of the accuracies are below 0.8 of their median."""
    return sum(value < FAILED * median(values) - SAME for value in values) if values else 0


@dataclass(frozen=True)
class Paired:
    """The comparison of `n` pairs: the mean difference in -1..1, its 95% interval and the p-value of a two-sided
    sign-flip test; both are None for one pair. `remark` says what is degenerate about the pairs, if anything."""

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    n: int
    remark: str = ""


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare fractions in 0..1 of the same seeds, `values[i]` with `baseline[i]`.

    The interval is the BCa bootstrap interval of the mean difference (Efron & Tibshirani 1993, section 14.3). It is
    undefined if all differences are equal; then the interval is that point. The test takes the signs of the differences
    as exchangeable (Fisher 1935): p is the fraction of sign flips whose mean is at least as far from 0. It is exact for
    up to 13 pairs, and estimated from 9,999 random flips for more (Phipson & Smyth 2010: never 0). Neither depends on
    the order of the pairs, and swapping the two sides mirrors both.

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
    # A set of differences and its mirror image get the same order and orientation, so that both are resampled alike.
    plain, mirrored = sorted(differences), sorted(-d for d in differences)
    oriented, is_mirrored = max((plain, False), (mirrored, True))
    if max(differences) - min(differences) < SAME:
        return Paired(mean, (mean, mean), _sign_flip(oriented), n, "all differences are equal: the interval is a point")
    low, high = _bca(oriented)
    return Paired(mean, (-high, -low) if is_mirrored else (low, high), _sign_flip(oriented), n)


def smallest_p(n: int) -> float:
    """Return the smallest p-value that a two-sided sign-flip test of n pairs can give: 2 of the 2^n sign flips."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values by Holm's step-down method (Holm 1979), in the given order: the k-th smallest of m p-values
    times m - k + 1, at least the one before it, at most 1. It bounds the chance of any false finding among the m."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _bca(differences: Sequence[float]) -> tuple[float, float]:
    import numpy as np
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    untyped: Any = stats
    result = untyped.bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="BCa", batch=1000, rng=SEED)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sign_flip(differences: Sequence[float]) -> float:
    import numpy as np
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    numbers: Any = np
    untyped: Any = stats

    def total(flipped: Any, axis: int) -> Any:
        return numbers.round(numbers.sum(flipped, axis=axis), 12)  # sums that differ only by rounding are ties

    result = untyped.permutation_test(
        (differences,), total, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, batch=1000, rng=SEED
    )
    return float(result.pvalue)
