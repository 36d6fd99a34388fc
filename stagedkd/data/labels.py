"""Weak labels: which training clips keep a clean label, which get a noisy one, which have none. Torch-free."""

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
    """The training clips: `true` (N,) class ids, -1 where nobody knows; `trusted` (N,) is False for labels that come
    noisy as they are; `groups` their groups; `looks` (N, F) features, wanted by instance-dependent noise alone."""

    true: Ids
    trusted: npt.NDArray[np.bool_]
    groups: Sequence[str]
    looks: Floats | None = None


def weaken(clips: Clips, labels: Labels, classes: Sequence[str]) -> tuple[Ids, list[str]]:
    """Draw the given labels of the training clips, class by class, so that the shares hold in each class.

    Labels that come noisy as they are stay so, and no noise is added to them.

    Returns:
        given labels (N,), -1 for none, and for each clip where its label comes from: clean, noisy or none.
    Raises:
        DataError: a confusion names a class that is not there.
    """
    given = np.full(len(clips.true), -1, np.int64)
    origin = [NONE] * len(clips.true)
    for i in np.flatnonzero((clips.true >= 0) & ~clips.trusted):
        given[i], origin[i] = clips.true[i], NOISY
    wrong = _wrong_labels(clips, labels, classes)
    for label in range(len(classes)):
        members = np.flatnonzero((clips.true == label) & clips.trusted)
        clean, noisy = _by_group(members, clips, labels) if labels.by == "group" else _by_clip(members, labels)
        for i in clean:
            given[i], origin[i] = label, CLEAN
        for i in noisy:
            given[i], origin[i] = wrong[i], NOISY
    return given, origin


def _by_clip(members: Ids, labels: Labels) -> tuple[Ids, Ids]:
    """The clean and the noisy clips of a class."""
    members = members[np.argsort(bits(labels.seed, Stream.CLIPS_CHOSEN, members.astype(np.int64)), kind="stable")]
    clean = _count(labels.clean, len(members))
    noisy = min(_count(labels.noisy, len(members)), len(members) - clean)
    return members[:clean], members[clean : clean + noisy]


def _by_group(members: Ids, clips: Clips, labels: Labels) -> tuple[Ids, Ids]:
    """Whole groups, in one order for all classes, so that a person is labelled in all classes or in none."""
    names = sorted(set(clips.groups))
    ranks = np.array([names.index(clips.groups[int(i)]) for i in members], np.int64)
    order = sorted(set(ranks.tolist()), key=lambda rank: int(bits(labels.seed, Stream.GROUPS_CHOSEN, rank).item()))
    clean_wanted = _count(labels.clean, len(members))
    all_wanted = clean_wanted + min(_count(labels.noisy, len(members)), len(members) - clean_wanted)
    clean: list[int] = []
    noisy: list[int] = []
    for rank in order:
        group = members[ranks == rank].tolist()
        taken = len(clean) + len(noisy)
        if len(clean) + len(group) / 2 <= clean_wanted or (clean_wanted and not clean):
            clean += group
        elif taken + len(group) / 2 <= all_wanted or (labels.noisy > 0 and not noisy):
            noisy += group
    return np.array(clean, np.int64), np.array(noisy, np.int64)


def _count(share: float, members: int) -> int:
    """A share of a class; no class is left out by rounding."""
    return max(round(share * members), 1 if share > 0 and members else 0)


def _wrong_labels(clips: Clips, labels: Labels, classes: Sequence[str]) -> Ids:
    """The label that each clip has once it went through the noise, (N,)."""
    noise, count, true = labels.noise, len(classes), clips.true
    numbers = np.arange(len(true), dtype=np.int64)
    if noise is None or count < 2:
        return true.copy()
    rate: Floats = np.full(len(true), noise.rate)
    match noise:
        case PairFlip():
            other = (true + 1) % count
        case Asymmetric():
            other = _confused(noise.confusions, classes)[true]
        case InstanceDependent():
            assert clips.looks is not None, "the stage measures them"
            rate = np.clip(noise.rate + 0.1 * _normal(labels.seed, Stream.NOISE_RATE, numbers), 0, 1)
            other = _by_looks(clips.looks, true, count, labels.seed)
        case _:
            other = (
                true + 1 + (uniform(labels.seed, Stream.LABEL_WRONG, numbers) * (count - 1)).astype(np.int64)
            ) % count
    return np.where(uniform(labels.seed, Stream.LABEL_FLIPPED, numbers) < rate, other, true)


def _confused(confusions: Mapping[str, str], classes: Sequence[str]) -> Ids:
    unknown = [name for pair in confusions.items() for name in pair if name not in classes]
    if unknown:
        raise DataError(f"labels.noise.confusions names '{unknown[0]}', which is no class", hint=", ".join(classes))
    return np.array([classes.index(confusions.get(name, name)) for name in classes], np.int64)


def _by_looks(looks: Floats, true: Ids, count: int, seed: int) -> Ids:
    """The wrong class that each clip looks like, drawn from the softmax of a random projection of its features that
    belongs to its true class (Xia et al. 2020, without the parts)."""
    spread = (looks - looks.mean(0)) / (looks.std(0) + 1e-8)
    width = spread.shape[1]
    cells = np.arange(count * width * count, dtype=np.int64)
    weights = _normal(seed, Stream.NOISE_PROJECTION, cells).reshape(count, width, count)
    scores = np.einsum("nf,nfc->nc", spread, weights[true]) / width**0.5
    scores[np.arange(len(true)), true] = -np.inf
    chances = np.exp(scores - scores.max(1, keepdims=True))
    ends = np.cumsum(chances / chances.sum(1, keepdims=True), axis=1)
    draws = uniform(seed, Stream.NOISE_LOOK, np.arange(len(true), dtype=np.int64))
    return np.minimum((draws[:, None] >= ends).sum(1), count - 1).astype(np.int64)


def _normal(seed: int, stream: Stream, numbers: Ids) -> Floats:
    """Standard normal (Box & Muller 1958)."""
    radius = np.sqrt(-2 * np.log(1 - uniform(seed, stream, numbers, 0)))
    return radius * np.cos(2 * np.pi * uniform(seed, stream, numbers, 1))


def label_counts(origin: Sequence[str]) -> dict[str, int]:
    """How many clips have a clean, a noisy and no label."""
    return {kind: origin.count(kind) for kind in (CLEAN, NOISY, NONE)}
