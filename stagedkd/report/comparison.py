"""Compare the settings of a grid with one of them, the baseline: students minus those of the baseline, paired over the
seeds that both have. Accuracies and differences are fractions, in units of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stagedkd.report.collect import NetworkResult
from stagedkd.report.statistics import Paired, holm, paired, smallest_p

LEVEL = 0.05  # a difference is shown if its corrected p-value is below this
SMALLEST_EFFECT = 0.01  # a smaller difference does not matter, whether it is shown or not
UNEQUAL_COMPUTE = 0.1  # a note names settings whose compute differs by more than this fraction

Students = Mapping[str, NetworkResult]  # the students of one setting, by seed


@dataclass(frozen=True)
class Comparison:
    """The comparison of one setting with the baseline. `paired` is None where nothing can be compared; `remark`
    then says why. `p_holm` is the test's p-value after Holm's correction over all settings of the grid with a test."""

    paired: Paired | None
    p_holm: float | None
    remark: str

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the corrected p-value is below 0.05, `not shown` where it is not, `-` where nothing
        was compared."""
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
        """The verdict in words, with the size of the effect and the remark."""
        return "; ".join(filter(None, [self.verdict, f"below {points(SMALLEST_EFFECT)}" * self.small, self.remark]))

    def as_json(self) -> dict[str, object]:
        """Return plain values for metrics.json; `difference` and its interval are in units of 1."""
        pair = self.paired
        return {
            "pairs": pair.n if pair else 0,
            "difference": pair and pair.mean,
            "interval95": pair and pair.interval and list(pair.interval),
            "p": pair and pair.p,
            "p_holm": self.p_holm,
            "verdict": self.verdict,
            "below_smallest_effect": self.small,
            "remark": self.remark,
        }


def compare(settings: Mapping[str, Students], baseline: str) -> dict[str, Comparison]:
    """Compare every other setting with the baseline. Settings and comparisons are given by name."""
    pairs = {name: _pair(students, settings[baseline]) for name, students in settings.items() if name != baseline}
    tested = {name: pair.p for name, (pair, _) in pairs.items() if pair and pair.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: Comparison(pair, corrected.get(name), remark) for name, (pair, remark) in pairs.items()}


def _pair(students: Students, baseline: Students) -> tuple[Paired | None, str]:
    """Compare the students of two settings, and remark on it. Seeds with the same two networks are one pair."""
    pairs = [(students[seed], baseline[seed]) for seed in students if seed in baseline]
    unique = list({(a.key, b.key): (a, b) for a, b in pairs}.values())
    if not unique:
        return None, "no seed has both"
    if all(a.key == b.key for a, b in unique):
        return None, "the same networks"
    result = paired([a.top1 for a, _ in unique], [b.top1 for _, b in unique])
    return result, result.remark


def power_notes(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """Yield a note for every number of pairs that is too small for any difference to be shown."""
    counts = sorted(c.paired.n for c in comparisons.values() if c.paired)
    for n in dict.fromkeys(counts):
        if n == 1:
            yield "1 seed cannot show a difference: it gives no interval and no test"
        elif smallest_p(n) >= LEVEL:
            yield f"{n} seeds cannot reach p < {LEVEL}: the smallest p is {smallest_p(n):.3g}"
        else:
            # Holm's factor counts settings with as many seeds or fewer; those with more may have smaller p-values.
            rivals = sum(1 < other <= n for other in counts)
            if rivals * smallest_p(n) >= LEVEL:
                least = min(1.0, rivals * smallest_p(n))
                unreachable = f"{n} seeds cannot reach p < {LEVEL} in {rivals} comparisons"
                yield f"{unreachable}: the smallest corrected p is {least:.3g}"


def compute_note(compute: Mapping[str, int | None], baseline: str) -> str:
    """Return a note on the settings whose training compute (FLOPs of all hops) differs from the baseline's, or ""."""
    base = compute[baseline]
    if not base:
        return ""
    most = UNEQUAL_COMPUTE + 1e-9
    unequal = {n: flops / base for n, flops in compute.items() if flops and abs(flops / base - 1) > most}
    ratios = ", ".join(f"{name} has {ratio:.3g} x" for name, ratio in unequal.items())
    return f"compared at unequal compute of all hops: {ratios} that of {baseline}" if unequal else ""


def points(fraction: float) -> str:
    """Return a fraction in points, such as "1 point"."""
    return f"{100 * fraction:g} point" + "s" * (fraction != 0.01)


def flops_text(count: int | None) -> str:
    """Return training compute with three significant digits, or "-" where it is unknown."""
    if count is None:
        return "-"
    unit, size = ("PFLOPs", 1e15) if count >= 999.5e12 else ("TFLOPs", 1e12)
    value = float(f"{count / size:.3g}")
    digits = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{digits}f} {unit}"


def p_text(value: float | None) -> str:
    """Return a p-value with three significant digits, or "-" where there is none."""
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3g}"
