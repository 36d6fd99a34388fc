"""Plots of the accuracy of an experiment's networks, and of how far their confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stagedkd.report.evidence import Predictions
from stagedkd.report.plots.figure import DIM, INK, LINE, SERIES, Plot, drawing, new_figure, short
from stagedkd.report.results import NetworkResult

BINS = 10


@dataclass(frozen=True)
class Bin:
    """A bin of confidence: its number, its clips, and their mean confidence and accuracy in 0..1."""

    number: int
    clips: int
    confidence: float
    accuracy: float


def reliability(predictions: Predictions) -> list[Bin]:
    """Return the bins of equal width that have clips."""
    bins: list[Bin] = []
    rows = list(zip(predictions.label, predictions.predicted, predictions.confidence, strict=True))
    for number in range(BINS):
        members = [(a == b, c) for a, b, c in rows if min(int(c * BINS), BINS - 1) == number]
        if members:
            count = len(members)
            bins.append(Bin(number, count, sum(c for _, c in members) / count, sum(r for r, _ in members) / count))
    return bins


def reliability_plot(network: str, bins: Sequence[Bin]) -> Plot:
    """Plot accuracy against confidence: on the diagonal, a network is as often right as it says. Below it, how many
    clips have which confidence."""
    clips = sum(each.clips for each in bins)
    with drawing():
        figure, (upper, lower) = new_figure(3.1, 2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 100], [0, 100], color=DIM, lw=1, ls="--")
        upper.bar([10 * b.number + 5 for b in bins], [100 * b.accuracy for b in bins], 9.2, color=SERIES[0], alpha=0.35)
        upper.plot([100 * b.confidence for b in bins], [100 * b.accuracy for b in bins], "o", color=SERIES[0])
        lower.bar([10 * b.number + 5 for b in bins], [100 * b.clips / clips for b in bins], 9.2, color=SERIES[1])
        upper.set_ylim(0, 102)
        upper.set_xlim(0, 100)
        for axis in (upper, lower):
            axis.grid(visible=True, axis="y", color=LINE)
            axis.set_axisbelow(True)
        upper.set_ylabel("clips right in percent")
        lower.set_ylabel("clips in %")
        lower.set_xlabel("confidence in percent")
    about = (
        f"Accuracy against confidence of {clips} clips in {len(bins)} bins; a dashed diagonal is perfect calibration."
    )
    return Plot(f"reliability-{network}", f"Reliability of the {network}", about, figure)


def networks_plot(networks: Sequence[NetworkResult], split: str) -> Plot:
    """Plot the top-1 of every measured network with its 95% interval."""
    rows = [network for network in networks if network.measured]
    with drawing():
        figure, axis = new_figure(0.75 + 0.42 * len(rows))
        for y, network in enumerate(rows):
            low, high = network.interval
            top1, is_student = 100 * network.top1, network.name == "student"
            error = [[max(0.0, top1 - 100 * low)], [max(0.0, 100 * high - top1)]]
            colour = SERIES[0] if is_student else DIM
            axis.errorbar([top1], [y], xerr=error, fmt="o", ms=6 if is_student else 4, lw=1.6, color=colour)
            axis.text(0, y - 0.3, short(network.name, 40), transform=axis.get_yaxis_transform(), va="center", color=INK)
        axis.set_yticks([])
        axis.set_ylim(len(rows) - 0.6, -0.6)
        axis.spines["left"].set_visible(False)
        axis.grid(visible=True, axis="x", color=LINE)
        axis.set_xlabel(f"top-1 in percent, {split} split, 95% intervals")
    told = "; ".join(f"{n.name} {100 * n.top1:.1f}" for n in rows)
    return Plot("networks", "Accuracy of the networks", f"Top-1 in percent with 95% intervals: {told}.", figure)
