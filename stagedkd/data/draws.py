"""Random numbers as a pure function of integers: the same on every machine, in any order, with no state.

The function is splitmix64 (Steele et al. 2014) over the sequence of integers. Each call names its stream, which is the
purpose of the draw.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """The purpose of a draw. It follows the seed in the arguments of `bits`, `uniform` and `permutation`, so that no
    two uses of one seed have the same random numbers. The number of a stream never changes once artifacts were made
    with it. The simulator has its streams in data/simulate/slots.py.

    71 is used for two purposes by mistake. The pair will be separated when the version of one of the kinds of work that
    draw from it is next raised. Until then the second name is an alias of the first.
    """

    ORDER_SEED = 51  # the seed of order and views, drawn from the seed of a training
    ORDER = 61  # the order of the clips in one pass through them
    RANK = 62  # the seed of torch's generators on one of several ranks
    ORDER_UNLABELLED = 63  # the order of the unlabelled clips, where they are drawn apart
    CLASS_ORDER = 64  # the order of the classes in a round of balanced draws
    CLASS_CLIPS = 65  # the order of the clips of a class in balanced draws
    GROUPS = 71  # the order in which the groups of a data set are dealt to its folds
    PROBE = 71  # the clips on which substages are correlated
    FOLD_TIES = 72  # the fold of a data set that takes a group if several are equally good
    FOLD_SEED = 73  # the seed of a network that is trained without one fold
    FOLDS = 74  # the order in which the groups are dealt to the folds of label refinement
    CLIPS_CHOSEN = 81  # which clips of a class are clean, noisy and unlabelled
    LABEL_FLIPPED = 82  # whether a noisy clip gets a wrong label
    LABEL_WRONG = 83  # which wrong label it gets, if all are equally likely
    GROUPS_CHOSEN = 84  # which groups are clean, noisy and unlabelled
    NOISE_RATE = 85  # how likely a clip is to get a wrong label, if that depends on the clip
    NOISE_PROJECTION = 86  # the projection of a clip's features that decides its wrong label
    NOISE_LOOK = 87  # which wrong label a clip gets by its features
    CLIPS_SEEN = 88  # which clips a network may see
    GROUPS_SEEN = 89  # which groups a network may see
    VIEW = 91  # place, crop, mirror, colour and tempo of a clip's view
    SEGMENTS = 92  # where in each segment of a clip its frame is taken
    MIX = 95  # whether a batch gets MixUp or CutMix, and the place of the box
    MIX_FRACTION = 96  # how much of each clip remains when it is mixed
    MIX_ORDER = 97  # which clip each one is mixed with
    STRONG_VIEW = 98  # the colours and the grey square of the strong view
    GUIDES_DROPPED = 99  # which guides are left out of a step
    GRAFT = 100  # which substage is grafted in a step
    FRAMES_SHUFFLED = 101  # the order of a clip's frames in an evaluation that shuffles them


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return 64 random bits for each element of the broadcast parts."""
    with np.errstate(over="ignore"):
        state = np.zeros(np.broadcast_shapes(*(np.shape(p) for p in parts)), np.uint64)
        for part in parts:
            state = _mix(state + _GAMMA + np.asarray(part, np.int64).astype(np.uint64))
        return state


def uniform(*parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return a uniform number in [0, 1), of 53 bits, for each element of the broadcast parts."""
    return (bits(*parts) >> np.uint64(11)).astype(np.float64) / 2.0**53


def permutation(n: int, *parts: int) -> npt.NDArray[np.int64]:
    """Return a random permutation of 0..n-1."""
    return np.argsort(bits(*parts, np.arange(n)), kind="stable").astype(np.int64)
