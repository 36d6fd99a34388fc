"""Random numbers as a pure function of integers: the same on every machine, in any order, with no state.

splitmix64 (Steele et al. 2014) over the sequence of integers; each call names what it draws for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 random bits for each element of the broadcast parts."""
    with np.errstate(over="ignore"):
        state = np.zeros(np.broadcast_shapes(*(np.shape(p) for p in parts)), np.uint64)
        for part in parts:
            state = _mix(state + _GAMMA + np.asarray(part, np.int64).astype(np.uint64))
        return state


def uniform(*parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1), 53 bits, for each element of the broadcast parts."""
    return (bits(*parts) >> np.uint64(11)).astype(np.float64) / 2.0**53


def permutation(n: int, *parts: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1."""
    return np.argsort(bits(*parts, np.arange(n)), kind="stable").astype(np.int64)
