"""Weak labels: choose which training clips keep a clean label, get a noisy one or have none. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagedkd.data.draws import Stream, bits, uniform
from stagedkd.errors import DataError
from stagedkd.spec.schema import Asymmetric, InstanceDependent, Labels, PairFlip

CLEAN, NOISY, NONE = "clean", "noisy", "none"
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clips:
    """The training clips.

    true: (N,) class ids, -1 if the true class is unknown. trusted: (N,), False for labels that are noisy in the data
    set itself. groups: the group of each clip. looks: (N, F) features, which only instance-dependent noise needs.
    """

    true: Ids
    trusted: npt.NDArray[np.bool_]
    groups: Sequence[str]
    looks: Floats | None = None


def weaken(clips: Clips, labels: Labels, classes: Sequence[str]) -> tuple[Ids, list[str]]:
    """Draw the weak labels of the training clips, class by class, so that the fractions hold in each class.

    Labels that are noisy in the data set itself stay as they are, and no noise is added to them.

    Returns:
        weak labels (N,), -1 for none, and the origin of each clip's label: clean, noisy or none.
    Raises:
        DataError: a confusion names a class that does not exist.
    """
    weak = np.full(len(clips.true), -1, np.int64)
    origin = [NONE] * len(clips.true)
    for i in np.flatnonzero((clips.true >= 0) & ~clips.trusted):
        weak[i], origin[i] = clips.true[i], NOISY
    wrong = _wrong_labels(clips, labels, classes)
    for label in range(len(classes)):
        members = np.flatnonzero((clips.true == label) & clips.trusted)
        clean, noisy = _by_group(members, clips, labels) if labels.by == "group" else _by_clip(members, labels)
        for i in clean:
            weak[i], origin[i] = label, CLEAN
        for i in noisy:
            weak[i], origin[i] = wrong[i], NOISY
    return weak, origin


def _by_clip(members: Ids, labels: Labels) -> tuple[Ids, Ids]:
    """Return the clean and the noisy clips of a class."""
    members = members[np.argsort(bits(labels.seed, Stream.CLIPS_CHOSEN, members.astype(np.int64)), kind="stable")]
    clean = _count(labels.clean, len(members))
    noisy = min(_count(labels.noisy, len(members)), len(members) - clean)
    return members[:clean], members[clean : clean + noisy]


def _by_group(members: Ids, clips: Clips, labels: Labels) -> tuple[Ids, Ids]:
    """Return the clean and the noisy clips of a class in whole groups. All classes take the groups in the same order,
    so that a person is labelled in all classes or in none."""
    names = sorted(set(clips.groups))
    ranks = np.array([names.index(clips.groups[int(i)]) for i in members], np.int64)
    order = sorted(set(ranks.tolist()), key=lambda rank: int(bits(labels.seed, Stream.GROUPS_CHOSEN, rank).item()))
    clean_count = _count(labels.clean, len(members))
    labelled_count = clean_count + min(_count(labels.noisy, len(members)), len(members) - clean_count)
    clean: list[int] = []
    noisy: list[int] = []
    for rank in order:
        group = members[ranks == rank].tolist()
        taken = len(clean) + len(noisy)
        if len(clean) + len(group) / 2 <= clean_count or (clean_count and not clean):
            clean += group
        elif taken + len(group) / 2 <= labelled_count or (labels.noisy > 0 and not noisy):
            noisy += group
    return np.array(clean, np.int64), np.array(noisy, np.int64)


def _count(fraction: float, members: int) -> int:
    """Return the number of clips in a fraction of a class: at least one, unless the fraction or the class is zero."""
    return max(round(fraction * members), 1 if fraction > 0 and members else 0)


def _wrong_labels(clips: Clips, labels: Labels, classes: Sequence[str]) -> Ids:
    """Return the label of each clip after the noise, (N,)."""
    noise, count, true = labels.noise, len(classes), clips.true
    rows = np.arange(len(true), dtype=np.int64)
    if noise is None or count < 2:
        return true.copy()
    rate: Floats = np.full(len(true), noise.rate)
    match noise:
        case PairFlip():
            other = (true + 1) % count
        case Asymmetric():
            other = _confusion_targets(noise.confusions, classes)[true]
        case InstanceDependent():
            assert clips.looks is not None, "the stage measures them"
            rate = np.clip(noise.rate + 0.1 * _normal(labels.seed, Stream.NOISE_RATE, rows), 0, 1)
            other = _by_looks(clips.looks, true, count, labels.seed)
        case _:
            other = (true + 1 + (uniform(labels.seed, Stream.LABEL_WRONG, rows) * (count - 1)).astype(np.int64)) % count
    return np.where(uniform(labels.seed, Stream.LABEL_FLIPPED, rows) < rate, other, true)


def _confusion_targets(confusions: Mapping[str, str], classes: Sequence[str]) -> Ids:
    """Return the wrong class of each class; a class without a confusion stays itself."""
    unknown = [name for pair in confusions.items() for name in pair if name not in classes]
    if unknown:
        hint = f"the classes are {', '.join(classes)}"
        raise DataError(f"labels.noise.confusions names '{unknown[0]}', which is not a class", hint=hint)
    return np.array([classes.index(confusions.get(name, name)) for name in classes], np.int64)


def _by_looks(looks: Floats, true: Ids, count: int, seed: int) -> Ids:
    """Draw the wrong class that each clip looks like, (N,). It comes from the softmax of a random projection of the
    clip's features; each true class has its projection (Xia et al. 2020, without the parts)."""
    standardised = (looks - looks.mean(0)) / (looks.std(0) + 1e-8)
    width = standardised.shape[1]
    cells = np.arange(count * width * count, dtype=np.int64)
    weights = _normal(seed, Stream.NOISE_PROJECTION, cells).reshape(count, width, count)
    scores = np.einsum("nf,nfc->nc", standardised, weights[true]) / width**0.5
    scores[np.arange(len(true)), true] = -np.inf
    chances = np.exp(scores - scores.max(1, keepdims=True))
    ends = np.cumsum(chances / chances.sum(1, keepdims=True), axis=1)
    draws = uniform(seed, Stream.NOISE_LOOK, np.arange(len(true), dtype=np.int64))
    return np.minimum((draws[:, None] >= ends).sum(1), count - 1).astype(np.int64)


def _normal(seed: int, stream: Stream, indices: Ids) -> Floats:
    """Draw a standard normal number for each index (Box & Muller 1958)."""
    radius = np.sqrt(-2 * np.log(1 - uniform(seed, stream, indices, 0)))
    return radius * np.cos(2 * np.pi * uniform(seed, stream, indices, 1))


def label_counts(origin: Sequence[str]) -> dict[str, int]:
    """Count the clips with a clean, a noisy and no label."""
    return {kind: origin.count(kind) for kind in (CLEAN, NOISY, NONE)}
