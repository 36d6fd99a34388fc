"""The shares of the student's substages in the mixture that each teacher substage is compared with (our formulation).

Shape legend: K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from typing import TypeAlias

MIXTURE_TEMPERATURE = 0.1  # of the softmax over correlations; lower is sharper
STEPS, STEEPEST = 100, 100.0  # of the bisection: how many, and the steepest tilt that it looks for

Shares: TypeAlias = Mapping[int, float]  # by student substage; their sum is 1


def mixture_shares(pairs: Iterable[tuple[int, int]], rho_KM: Sequence[Sequence[float]]) -> dict[int, Shares]:
    """Return A[m, k] by teacher substage m, then by student substage k: how much of the match of m each k carries.

    A[m, :] = softmax_k(rho[k, m] / 0.1) over the `pairs` of the phase, which hold only substages that it trains. Then
    the expected depth sum_k k A[m, k] must not fall from one m to the next. Where it falls, the neighbouring rows get
    their common mean depth (isotonic regression by pooling adjacent violators), each by the tilt
    A[m, k] exp(lambda_m k) / Z, which is the distribution with that mean that is nearest to the softmax in KL.

    Args:
        pairs: (k, m), counted from 0; the substages of each m must not begin or end before those of an earlier m.
        rho_KM: correlations in 0..1.
    """
    rows: dict[int, list[int]] = {}
    for k, m in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        rows.setdefault(m, []).append(k)
    shares: dict[int, Shares] = {
        m: _softmax({k: rho_KM[k][m] / MIXTURE_TEMPERATURE for k in ks}) for m, ks in rows.items()
    }
    depths = [depth_of(row) for row in shares.values()]
    for (m, row), depth, wanted in zip(shares.items(), depths, _isotonic(depths), strict=True):
        if wanted != depth:
            shares[m] = _tilted(row, wanted)
    return shares


def depth_of(row: Shares) -> float:
    """Return the expected depth of a row of shares."""
    return sum(k * share for k, share in row.items())


def share_matrix(shares: Mapping[int, Shares], students: int, teachers: int) -> list[list[float | None]]:
    """Return shares as K rows of M numbers; None for what is not compared."""
    return [[shares[m].get(k) if m in shares else None for m in range(teachers)] for k in range(students)]


def _softmax(logits: Mapping[int, float]) -> dict[int, float]:
    highest = max(logits.values())
    raised = {k: exp(value - highest) for k, value in logits.items()}
    total = sum(raised.values())
    return {k: value / total for k, value in raised.items()}


def _isotonic(values: Sequence[float]) -> list[float]:
    """Return the nearest sequence that never falls: neighbours that fall are replaced by their mean."""
    pools: list[tuple[float, int]] = []  # (mean, length)
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (first, n), (second, count) = pools[-2:]
            pools[-2:] = [((n * first + count * second) / (n + count), n + count)]
    return [mean for mean, length in pools for _ in range(length)]


def _tilted(row: Shares, depth: float) -> Shares:
    """Return the shares times exp(slope * k), normalised, with the slope that gives the expected depth."""
    low, high = -STEEPEST, STEEPEST
    tilted = dict(row)
    for _ in range(STEPS):
        slope = (low + high) / 2
        weights = {k: slope * k for k in row}
        highest = max(weights.values())
        raised = {k: share * exp(weights[k] - highest) for k, share in row.items()}
        total = sum(raised.values())
        tilted = {k: value / total for k, value in raised.items()}
        low, high = (slope, high) if depth_of(tilted) < depth else (low, slope)
    return tilted
