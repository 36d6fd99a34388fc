"""What each weighted loss adds to the total: sums over steps, their means, and their shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Tally: TypeAlias = dict[
    str, list[float]
]  # by loss: the sum of its weighted values, of their absolute values, the steps


def count(tally: Tally, weighted: Mapping[str, float]) -> None:
    """Add the weighted losses of one step."""
    for name, value in weighted.items():
        sums = tally.setdefault(name, [0.0, 0.0, 0.0])
        sums[0] += value
        sums[1] += abs(value)
        sums[2] += 1


def contributions(tally: Tally) -> dict[str, dict[str, float]]:
    """The mean of each weighted loss, and its share in the total: the sum of its absolute values over that of all
    losses, in 0..1, since a loss may be negative. All shares are 0 if every value was."""
    total = sum(absolute for _, absolute, _ in tally.values())
    return {
        name: {"mean": signed / steps, "share": absolute / total if total else 0.0}
        for name, (signed, absolute, steps) in tally.items()
    }
