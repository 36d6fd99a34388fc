"""Compare settings of a grid with their baselines: students minus those of the baseline, paired over the units that
both have: seeds, or groups. Accuracies and differences are fractions, in units of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from stagedkd.report.statistics import Paired, holm, paired, smallest_p
from stagedkd.report.units import Scores, Unit, paired_units

LEVEL = 0.05  # a difference is shown if its corrected p-value is below this
SMALLEST_EFFECT = 0.01  # a smaller difference does not matter, whether it is shown or not
UNEQUAL = 0.05  # compute, labels and tuning are said to differ where they do by more than this fraction


@dataclass(frozen=True)
class Comparison:
    """The comparison of one setting with the baseline. `paired` is None where nothing can be compared; `remark`
    then says why. `p_holm` is the test's p-value after Holm's correction over all settings of the grid with a test.

    In a grid that declares one comparison, `role` is `primary` for this one, whose p-value is not corrected, and
    `exploratory` for the others, which are corrected among themselves; else it is "". `unequal` says what else than the
    method differs from the baseline: compute, labels or tuning.
    """

    paired: Paired | None
    p_holm: float | None
    remark: str
    role: Literal["", "primary", "exploratory"] = ""
    unequal: tuple[str, ...] = ()

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
        """The verdict in words after its role, with the size of the effect, the remark and what is unequal."""
        verdict = f"{self.role}: {self.verdict}" if self.role and self.paired else self.verdict
        small = f"below {points(SMALLEST_EFFECT)}" * self.small
        return "; ".join(filter(None, [verdict, small, self.remark, *self.unequal]))

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
            "role": self.role,
            "unequal": list(self.unequal),
        }


@dataclass(frozen=True)
class Effort:
    """What a setting was given: training compute of all hops, labelled clips of its networks, trainings behind its
    tuned values, and training compute of its teacher; None where unknown. `taken`: its values were tuned for others."""

    flops: int | None = None
    labels: int | None = None
    trainings: int | None = None
    teacher: int | None = None
    taken: bool = False


def compare(
    pairs: Mapping[str, tuple[Scores, Scores]],
    primary: str = "",
    efforts: Mapping[str, tuple[Effort, Effort]] | None = None,
    unit: Unit = "seed",
) -> dict[str, Comparison]:
    """Compare settings with their baselines. `pairs` has the scores of the students of both, and `efforts` what both
    were given, by the setting's name. `primary` names the one comparison that was declared, "" if none was."""
    found = {name: _pair(own, base, unit) for name, (own, base) in pairs.items()}
    tested = {name: pair.p for name, (pair, _) in found.items() if pair and pair.p is not None}
    alone = tested.pop(primary, None)
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    if alone is not None:
        corrected[primary] = alone

    def role(name: str) -> Literal["", "primary", "exploratory"]:
        return "" if not primary else "primary" if name == primary else "exploratory"

    given = efforts or dict.fromkeys(pairs, (Effort(), Effort()))
    return {
        name: Comparison(pair, corrected.get(name), remark, role(name), unequal(*given[name]))
        for name, (pair, remark) in found.items()
    }


def average(efforts: Sequence[Effort]) -> Effort:
    """Return what each of several settings was given on average."""

    def rounded_mean(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return round(fmean(known)) if len(known) == len(counts) else None

    return Effort(
        rounded_mean([each.flops for each in efforts]),
        rounded_mean([each.labels for each in efforts]),
        rounded_mean([each.trainings for each in efforts]),
        rounded_mean([each.teacher for each in efforts]),
        any(each.taken for each in efforts),
    )


def unequal(effort: Effort, baseline: Effort) -> tuple[str, ...]:
    """Return what a setting had more or less of than the baseline, by more than 5%, and whether it was tuned itself."""
    parts = [
        ("compute of all hops", effort.flops, baseline.flops),
        ("labelled clips", effort.labels, baseline.labels),
        ("trainings to tune", effort.trainings, baseline.trainings),
        ("compute of the teacher", effort.teacher, baseline.teacher),
    ]
    ratios = [_ratio(what, own, base) for what, own, base in parts if _differ(own, base)]
    others = "" if effort.taken else "the baseline's "
    return (*ratios, *[f"{others}values tuned for others"] * (effort.taken or baseline.taken))


def _differ(own: int | None, base: int | None) -> bool:
    return own is not None and base is not None and abs(own - base) > (UNEQUAL + 1e-9) * base


def _ratio(what: str, own: int | None, base: int | None) -> str:
    assert own is not None and base is not None
    count = f"{flops_text(own)} of" if what.startswith("compute") else f"{own:,}"
    return f"{own / base:.3g} x the {what}" if base else f"{count} {what}, the baseline none"


def _pair(scores: Scores, baseline: Scores, unit: Unit) -> tuple[Paired | None, str]:
    """Compare the students of two settings, and remark on it."""
    pairs = list(paired_units(scores, baseline))
    if not pairs:
        return None, f"no {unit} has both"
    if all(same for _, _, same in pairs):
        return None, "the same networks"
    result = paired([own for own, _, _ in pairs], [other for _, other, _ in pairs])
    return result, result.remark


def power_notes(comparisons: Mapping[str, Comparison], unit: Unit = "seed") -> Iterator[str]:
    """Yield a note for every number of pairs that is too small for any difference to be shown."""
    counts = sorted(c.paired.n for c in comparisons.values() if c.paired and c.role != "primary")
    for comparison in comparisons.values():
        if comparison.role == "primary" and comparison.paired and smallest_p(comparison.paired.n) >= LEVEL:
            n = comparison.paired.n
            yield f"{n} {unit}s cannot show the primary comparison: the smallest p is {smallest_p(n):.3g}"
    for n in dict.fromkeys(counts):
        if n == 1:
            yield f"1 {unit} cannot show a difference: it gives no interval and no test"
        elif smallest_p(n) >= LEVEL:
            yield f"{n} {unit}s cannot reach p < {LEVEL}: the smallest p is {smallest_p(n):.3g}"
        else:
            # Holm's factor counts settings with as many seeds or fewer; those with more may have smaller p-values.
            rivals = sum(1 < other <= n for other in counts)
            if rivals * smallest_p(n) >= LEVEL:
                least = min(1.0, rivals * smallest_p(n))
                unreachable = f"{n} {unit}s cannot reach p < {LEVEL} in {rivals} comparisons"
                yield f"{unreachable}: the smallest corrected p is {least:.3g}"


def compute_notes(compute: Mapping[str, int | None], baselines: Mapping[str, str]) -> Iterator[str]:
    """Yield a note for each baseline, on the settings whose training compute (FLOPs of all hops) differs from it."""
    for baseline in dict.fromkeys(baselines.values()):
        base = compute[baseline]
        others = {name: compute[name] for name, own in baselines.items() if own == baseline}
        ratios = {name: flops / base for name, flops in others.items() if base and flops}
        apart = [f"{name} has {r:.3g} x" for name, r in ratios.items() if abs(r - 1) > UNEQUAL + 1e-9]
        if apart:
            yield f"compared at unequal compute of all hops: {', '.join(apart)} that of {baseline}"


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
