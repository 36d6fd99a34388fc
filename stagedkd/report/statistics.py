"""Intervals."""

from __future__ import annotations

import math


def wilson(right: int, of: int, z: float = 1.959963985) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927), clips taken as independent. (0, 1) for no clips."""
    if of == 0:
        return 0.0, 1.0
    share, extra = right / of, z * z / of
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / of + extra / (4 * of)) / (1 + extra)
    return max(0.0, centre - half), min(1.0, centre + half)
