"""How far repeated times of the same work lie apart. Reports read this too, so it needs no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BUSY = 0.2  # a larger spread comes from other work on the machine


def spread_of(seconds_BP: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The median of times in blocks (B, P), and the range of the blocks' medians, relative to it."""
    middles = np.median(seconds_BP, axis=1)
    middle = float(np.median(seconds_BP))
    return middle, float((middles.max() - middles.min()) / middle)
