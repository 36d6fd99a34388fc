"""Random numbers as a pure function of integers: the same on every machine, in any order, with no state.

splitmix64 (Steele et al. 2014) over the sequence of integers; each call names its stream: what it draws for.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """What a draw is for: the part of `bits`, `uniform` and `permutation` that follows the seed, so that no two uses
    of one seed share their numbers. A number never changes once artifacts were made with it. The simulator has numbers
    of its own (data/simulate/slots.py).

    71 and 72 are each used for two things, which was overlooked; both pairs are separated when the versions of the
    kinds of work that draw from them are next bumped. Until then the second name is an alias of the first.
    """

    ORDER_SEED = 51  # the seed of order and views, made of the seed of a training
    ORDER = 61  # the order of the clips in one turn through them
    RANK = 62  # torch's generators of one rank of several
    GROUPS = 71  # the order in which the groups of a data set are dealt to its folds
    PROBE = 71  # the clips over which substages are correlated
    FOLDS = 72  # the order in which the groups are dealt to the folds of label refinement
    FOLD_TIES = 72  # which of a data set's folds takes a group where several want it alike
    FOLD_SEED = 73  # the seed of a network that is trained out of fold
    CLIPS_CHOSEN = 81  # which clips of a class are clean, noisy and unlabelled
    LABEL_FLIPPED = 82  # whether a noisy clip gets a wrong label
    LABEL_WRONG = 83  # which wrong label it gets, all being alike
    GROUPS_CHOSEN = 84  # which groups are clean, noisy and unlabelled
    NOISE_RATE = 85  # how likely a clip is to get a wrong label, where that depends on the clip
    NOISE_PROJECTION = 86  # the projection by which a clip's look decides its wrong label
    NOISE_LOOK = 87  # which wrong label a clip gets by its look
    VIEW = 91  # place, crop, mirror, colour and tempo of a clip's view
    SEGMENTS = 92  # where in each segment of a clip its frame is taken
    MIX = 95  # which of MixUp and CutMix a batch gets, and the place of the box
    MIX_SHARE = 96  # how much of each clip stays when it is mixed
    MIX_ORDER = 97  # which clip each one is mixed with
    STRONG_VIEW = 98  # colours and grey square of the strong view
    GUIDES_DROPPED = 99  # which guides are left out of a step


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
