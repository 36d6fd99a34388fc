"""The order in which the clips of a training are drawn: endless sequences of rows, of which a batch is a window.

Each function is pure: a place in a sequence determines its row, so that a resumed training sees the same clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


class Passes:
    """The permutations of the passes that a training is in, so that a step costs the work of its batch and not of all
    clips. It keeps the two latest passes through each sequence: a batch may begin in one and end in the next.

    The permutations are pure functions of their arguments, so it does not matter what is kept, or which thread asks.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], tuple[tuple[int, Ids], ...]] = {}

    def order(self, n: int, seed: int, *sequence: int, turn: int) -> Ids:
        """Return `permutation(n, seed, *sequence, turn)`, (n,), to be read only."""
        key = (n, seed, *sequence)
        kept = self.kept.get(key, ())
        for known, order in kept:
            if known == turn:
                return order
        order = permutation(n, seed, *sequence, turn)
        order.setflags(write=False)
        self.kept[key] = ((turn, order), *kept[:1])
        return order


def in_turn(rows: Ids, places: Ids, seed: int, stream: Stream, phase: int, passes: Passes) -> tuple[Ids, Ids]:
    """Return the rows at `places` of an endless sequence of permutations of `rows`, and how often each row has come
    before."""
    turns, chosen = places // len(rows), np.empty(len(places), np.int64)
    for turn in np.unique(turns).tolist():
        at = turns == turn
        order = passes.order(len(rows), seed, stream, phase, turn=turn)
        chosen[at] = rows[order[places[at] % len(rows)]]
    return chosen, turns


def by_class(rows: Ids, labels: Ids) -> dict[int, Ids]:
    """Return the rows of each class that has any, by class.

    Args:
        labels: (len(rows),), the class of each row.
    """
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(rows[order], starts[1:]), strict=True))


def balanced(members: Mapping[int, Ids], places: Ids, seed: int, phase: int, passes: Passes) -> tuple[Ids, Ids]:
    """Return the rows at `places` of an endless sequence of rounds, and how often each row has come before. In a round
    each class comes once, in a drawn order; the clips of a class come in turn.

    Args:
        members: the rows of each class, from `by_class`. A class without a row does not come.
    """
    classes = list(members)
    chosen, turns = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    for i, place in enumerate(places.tolist()):
        number, at = divmod(place, len(classes))
        which = classes[passes.order(len(classes), seed, Stream.CLASS_ORDER, phase, turn=number)[at]]
        own = members[which]
        turn, at = divmod(number, len(own))
        order = passes.order(len(own), seed, Stream.CLASS_CLIPS, phase, which, turn=turn)
        chosen[i], turns[i] = own[order[at]], turn
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
