"""Every setting of a grid against one of them: its students less the baseline's, paired over the seeds that both have.
Accuracies and differences are shares, in units of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stagedkd.report.collect import NetworkResult
from stagedkd.report.statistics import Paired, holm, paired, smallest_p

LEVEL = 0.05  # a corrected p-value below it is shown
SMALLEST_EFFECT = 0.01  # a difference of less than one point does not matter, shown or not
UNEQUAL_COMPUTE = 0.1  # compute that differs by more than this share is said

Students = Mapping[str, NetworkResult]  # the students of one setting, by seed


@dataclass(frozen=True)
class Comparison:
    """One setting against the baseline. `paired` is None where nothing can be compared, and `remark` says why; `p_holm`
    is the test's p-value after Holm's correction over all settings of the grid that have a test."""

    paired: Paired | None
    p_holm: float | None
    remark: str

    @property
    def verdict(self) -> str:
        """Better or worse where the corrected p-value is below 0.05, "not shown" where it is not, "-" where nothing was
        compared."""
        if self.paired is None:
            return "-"
        if self.p_holm is None or self.p_holm >= LEVEL:
            return "not shown"
        return "better" if self.paired.mean > 0 else "worse"

    @property
    def small(self) -> bool:
        """Whether the mean difference is below the smallest effect that matters."""
        return self.paired is not None and abs(self.paired.mean) < SMALLEST_EFFECT - 1e-9

    @property
    def finding(self) -> str:
        """The verdict with all that belongs to it, in words."""
        return "; ".join(filter(None, [self.verdict, f"below {points(SMALLEST_EFFECT)}" * self.small, self.remark]))

    def as_json(self) -> dict[str, object]:
        """Plain values for metrics.json; `difference` and its interval in units of 1."""
        found = self.paired
        return {
            "pairs": found.n if found else 0,
            "difference": found and found.mean,
            "interval95": found and found.interval and list(found.interval),
            "p": found and found.p,
            "p_holm": self.p_holm,
            "verdict": self.verdict,
            "below_smallest_effect": self.small,
            "remark": self.remark,
        }


def compare(settings: Mapping[str, Students], baseline: str) -> dict[str, Comparison]:
    """Compare the settings, all but the baseline, with the baseline; all by name."""
    pairs = {name: _pair(found, settings[baseline]) for name, found in settings.items() if name != baseline}
    tested = {name: pair.p for name, (pair, _) in pairs.items() if pair and pair.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: Comparison(pair, corrected.get(name), remark) for name, (pair, remark) in pairs.items()}


def _pair(above: Students, below: Students) -> tuple[Paired | None, str]:
    """The pairs of two settings, with what is to be said of them. Seeds that share both networks are one pair."""
    shared = [(above[seed], below[seed]) for seed in above if seed in below]
    unique = list({(a.key, b.key): (a, b) for a, b in shared}.values())
    if not unique:
        return None, "no seed has both"
    if all(a.key == b.key for a, b in unique):
        return None, "the same networks"
    found = paired([a.top1 for a, _ in unique], [b.top1 for _, b in unique])
    return found, found.remark


def power_notes(found: Mapping[str, Comparison]) -> Iterator[str]:
    """What no outcome could have shown, for want of seeds: once for every number of pairs."""
    counts = sorted(c.paired.n for c in found.values() if c.paired)
    for n in dict.fromkeys(counts):
        if n == 1:
            yield "1 seed can show no difference: there is neither an interval nor a test"
        elif smallest_p(n) >= LEVEL:
            yield f"{n} seeds cannot pass {LEVEL}: the smallest p is {smallest_p(n):.3g}"
        else:
            # Settings of more seeds may come before these in Holm's order; those of as many or fewer share the factor.
            rivals = sum(1 < other <= n for other in counts)
            if rivals * smallest_p(n) >= LEVEL:
                least = min(1.0, rivals * smallest_p(n))
                yield f"{n} seeds cannot pass {LEVEL} in {rivals} comparisons: the smallest corrected p is {least:.3g}"


def compute_note(compute: Mapping[str, int | None], baseline: str) -> str:
    """Names the settings whose training compute (FLOPs of all hops) is not the baseline's; "" where there is none."""
    base = compute[baseline]
    if not base:
        return ""
    most = UNEQUAL_COMPUTE + 1e-9
    unequal = {n: flops / base for n, flops in compute.items() if flops and abs(flops / base - 1) > most}
    shown = ", ".join(f"{name} has {ratio:.3g} x" for name, ratio in unequal.items())
    return f"compared at unequal compute of all hops: {shown} that of {baseline}" if unequal else ""


def points(share: float) -> str:
    """A share in points: "1 point"."""
    return f"{100 * share:g} point" + "s" * (share != 0.01)


def flops_text(count: int | None) -> str:
    """Training compute with three significant digits, "-" where it is unknown."""
    if count is None:
        return "-"
    unit, size = ("PFLOPs", 1e15) if count >= 999.5e12 else ("TFLOPs", 1e12)
    value = float(f"{count / size:.3g}")
    digits = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{digits}f} {unit}"


def p_text(value: float | None) -> str:
    """A p-value with three significant digits, "-" where there is none."""
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3g}"
