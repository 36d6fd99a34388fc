"""The order in which the clips of a training are drawn: endless sequences of rows, of which a batch is a window.

Each function is pure: a place in a sequence determines its row, so that a resumed training sees the same clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from stagedkd.data.draws import Stream, permutation
from stagedkd.errors import DataError
from stagedkd.spec.labelled import class_weights_problem
from stagedkd.spec.schema.training import ClassWeights

Ids = npt.NDArray[np.int64]


def labelled_before(share: float, place: int) -> int:
    """Return the number of labelled clips among the first `place` clips of a training: place * share, rounded up. The
    share is taken as the decimal number that the user wrote."""
    return math.ceil(Fraction(repr(share)) * place)


def in_turn(rows: Ids, places: Ids, seed: int, stream: Stream, phase: int) -> tuple[Ids, Ids]:
    """Return the rows at `places` of an endless sequence of permutations of `rows`, and how often each row has come
    before."""
    turns = places // len(rows)
    orders = {turn: rows[permutation(len(rows), seed, stream, phase, turn)] for turn in set(turns.tolist())}
    pairs = zip(turns.tolist(), places.tolist(), strict=True)
    return np.array([orders[turn][place % len(rows)] for turn, place in pairs], np.int64), turns


def balanced(rows: Ids, labels: Ids, places: Ids, seed: int, phase: int) -> tuple[Ids, Ids]:
    """Return the rows at `places` of an endless sequence of rounds, and how often each row has come before. In a round
    each class comes once, in a drawn order; the clips of a class come in turn.

    Args:
        labels: (len(rows),), the class of each row, 0 or more. A class without a row does not come.
    """
    classes = np.unique(labels)
    members = [rows[labels == c] for c in classes]
    rounds = places // len(classes)
    orders = {
        number: permutation(len(classes), seed, Stream.CLASS_ORDER, phase, number) for number in set(rounds.tolist())
    }
    chosen, turns = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    for i, (number, place) in enumerate(zip(rounds.tolist(), places.tolist(), strict=True)):
        which = int(orders[number][place % len(classes)])
        own = members[which]
        turn = number // len(own)
        order = permutation(len(own), seed, Stream.CLASS_CLIPS, phase, int(classes[which]), turn)
        chosen[i], turns[i] = own[order[number % len(own)]], turn
    return chosen, turns


def class_weights(setting: ClassWeights, classes: Sequence[str], labels: Ids) -> npt.NDArray[np.float32]:
    """Return the weight of each class in `ce`, (N,).

    Args:
        classes: their names, in the order of the outputs. labels: of the training clips, -1 for none.
    Raises:
        DataError: the setting does not fit the classes.
    """
    _, message, hint = class_weights_problem(setting, classes)
    if message:
        raise DataError(f"train.class_weights: {message}", hint=hint)
    if setting == "inverse":
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        present = counts > 0
        weights = np.ones(len(classes))
        weights[present] = counts.sum() / (present.sum() * counts[present])
        return weights.astype(np.float32)
    if isinstance(setting, tuple):
        return np.array(setting, np.float32)
    return np.array([setting.get(name, 1.0) for name in classes], np.float32)
