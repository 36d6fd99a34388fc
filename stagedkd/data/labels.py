"""Weak labels: which training clips keep a clean label, which get a noisy one, which have none. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stagedkd.data.draws import bits, uniform
from stagedkd.spec.schema import Labels

CLEAN, NOISY, NONE = "clean", "noisy", "none"


def weaken(
    true: npt.NDArray[np.int64], trusted: npt.NDArray[np.bool_], labels: Labels, classes: int
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Draw the given labels of the training clips, class by class, so that the shares hold in each class.

    Args:
        true: (N,) class ids of the training clips, -1 where nobody knows.
        trusted: (N,) False for labels that come noisy as they are; they stay so, and no noise is added.
    Returns:
        given labels (N,), -1 for none, and for each clip where its label comes from: clean, noisy or none.
    """
    given = np.full(len(true), -1, np.int64)
    origin = [NONE] * len(true)
    for i in np.flatnonzero((true >= 0) & ~trusted):
        given[i], origin[i] = true[i], NOISY
    for label in range(classes):
        members = np.flatnonzero((true == label) & trusted)
        members = members[np.argsort(bits(labels.seed, 81, members.astype(np.int64)), kind="stable")]
        clean = _count(labels.clean, len(members))
        noisy = min(_count(labels.noisy, len(members)), len(members) - clean)
        for rank, i in enumerate(members[: clean + noisy]):
            origin[i] = CLEAN if rank < clean else NOISY
            given[i] = label if rank < clean else _flip(label, int(i), labels, classes)
    return given, origin


def _count(share: float, members: int) -> int:
    """A share of a class; no class is left out by rounding."""
    return max(round(share * members), 1 if share > 0 and members else 0)


def _flip(label: int, clip: int, labels: Labels, classes: int) -> int:
    rate = labels.noise.rate if labels.noise else 0.0
    if classes < 2 or float(uniform(labels.seed, 82, clip)) >= rate:
        return label
    step = 1 + int(float(uniform(labels.seed, 83, clip)) * (classes - 1))
    return (label + step) % classes


def label_counts(origin: Sequence[str]) -> dict[str, int]:
    """How many clips have a clean, a noisy and no label."""
    return {kind: origin.count(kind) for kind in (CLEAN, NOISY, NONE)}
