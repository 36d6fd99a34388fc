"""Choose the part of the training clips that a network may see. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stagedkd.data.draws import Stream, bits

Ids = npt.NDArray[np.int64]


def quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Divide `count` over strata in proportion to their sizes, by largest remainders; ties go to the earlier one.

    Args:
        sizes: of the strata; their sum is at least `count`.
    """
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % total), i))
    for i in order[: count - sum(shares)]:
        shares[i] += 1
    return shares


def seen_clips(labels: Ids, groups: Sequence[str], count: int, seed: int, *, whole_groups: bool) -> Ids:
    """Draw the clips that a network sees: `count` of n training clips, as sorted rows.

    Single clips are drawn in the proportions of the given labels, clips without a label being one more class; no true
    label is used. Whole groups are drawn in the proportions of labelled and unlabelled groups, so that the number of
    clips is as close to `count` as the groups allow; at least one group is drawn.

    Args:
        labels: (n,), the given labels, -1 for none. groups: of each clip. count: 1..n. seed: of the draw.
    """
    if whole_groups:
        return _by_group(labels, groups, count, seed)
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    parts: list[Ids] = []
    for rows, quota in zip(strata, quotas([len(rows) for rows in strata], count), strict=True):
        order = np.argsort(bits(seed, Stream.CLIPS_SEEN, rows.astype(np.int64)), kind="stable")
        parts.append(rows[order[:quota]])
    return np.sort(np.concatenate(parts))


def _by_group(labels: Ids, groups: Sequence[str], count: int, seed: int) -> Ids:
    """Draw whole groups."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = sorted(members)
    ranks = bits(seed, Stream.GROUPS_SEEN, np.arange(len(names), dtype=np.int64))
    order = [members[names[i]] for i in np.argsort(ranks, kind="stable")]
    labelled = [rows for rows in order if (labels[rows] >= 0).any()]
    strata = [part for part in (labelled, [rows for rows in order if not (labels[rows] >= 0).any()]) if part]
    chosen: list[int] = []
    for part, quota in zip(strata, quotas([sum(map(len, part)) for part in strata], count), strict=True):
        taken: list[int] = []
        for rows in part:
            if len(taken) + len(rows) / 2 <= quota:
                taken += rows
        chosen += taken
    return np.array(sorted(chosen or order[0]), np.int64)
