"""The first sentences of a report: the student, its size and its accuracy beside teacher and control."""

from __future__ import annotations

from stagedkd.report.evidence import Difference, Evidence
from stagedkd.report.results import NetworkResult, Results
from stagedkd.report.statistics import near_chance

SPLITS = {"val": "validation", "test": "test"}


def headline(results: Results, evidence: Evidence | None = None) -> tuple[str, ...]:
    """Return the sentences: the student itself, then how it compares, then what a reader must not overlook. Differences
    are paired over the clips where the evidence has the answers of both networks."""
    student, teacher, control = results.student, results.teacher, results.control
    evidence = evidence or Evidence()
    size = _size(student, teacher)
    clips = results.data["clips"].get(results.split, 0)
    split = SPLITS.get(results.split, results.split)
    if not student.measured:
        return (f"{size}. Its accuracy was not measured.",)
    low, high = student.interval
    seen = {"shuffled": ", their frames shuffled,", "single": ", one frame of each,", None: ""}
    which = f"{clips:,} {split} clips{seen[results.plan.spec.evaluate.frames]}"
    accuracy = f"{pct(student.top1)} of {which} right (95% interval {pct(low)} to {pct(high)})"
    sentences = [f"{size}. It gets {accuracy}."]
    for other, words in ((teacher, "its teacher"), (control, "its control, the same network without a teacher")):
        if other is not None and other.measured:
            sentences.append(_compared(student, other, words, evidence.difference(student.name, other.name)))
    if near_chance(student.interval, student.classes, student.commonest):
        sentences.append("It may be no better than a network that ignores the clips.")
    return tuple(sentences)


def _size(student: NetworkResult, teacher: NetworkResult) -> str:
    """The size of the student, beside that of its teacher where this is known."""
    ratio = student.smaller_than(teacher)
    beside = "" if ratio is None else _times(ratio, teacher.params)
    return f"The student has {student.params:,} parameters{beside}"


def _times(ratio: float, teacher: int) -> str:
    """Return how small a network is beside a teacher of `ratio` times its size."""
    if abs(ratio - 1) < 0.005:
        return ", as many as its teacher"
    return (
        f", {ratio:.1f} times fewer than its teacher's {teacher:,}"
        if ratio > 1
        else f", {1 / ratio:.1f} times its teacher's {teacher:,}"
    )


def _compared(student: NetworkResult, other: NetworkResult, words: str, paired: Difference | None) -> str:
    """Compare the student with another network: by the same clips, or by both intervals where these are all we know."""
    if paired is None:
        return _unpaired(student, other, words)
    which = f"{words}, which has {pct(other.top1)}"
    low, high = sorted((paired.low, paired.high), key=abs)
    if paired.low > 0 or paired.high < 0:
        span = f"95% interval {_in_points(abs(low))} to {_in_points(abs(high))}, on the same clips"
        verdict = "better" if paired.low > 0 else "worse"
        return f"It is {_in_points(abs(paired.mean))} points {verdict} than {which} ({span})."
    span = f"95% interval of the difference {_signed(paired.low)} to {_signed(paired.high)} points"
    few = f"{paired.clips:,} clips are too few to tell which is better ({span}, on the same clips)"
    return f"{_unclear(paired.mean, which, is_control=other.name.startswith('control'))}, and {few}."


def _unclear(difference: float, which: str, *, is_control: bool) -> str:
    """Say on which side of another network the student is, where clips are too few to tell. A student that has no more
    clips right than its control is said to be no better, since that is what it was trained for."""
    if abs(difference) < 1e-9:
        return f"It is {'not better than' if is_control else 'level with'} {which}"
    if difference < 0 and is_control:
        return f"It is not better than {which}: it is {_in_points(-difference)} points below"
    return f"It is {_in_points(abs(difference))} points {'above' if difference > 0 else 'below'} {which}"


def _unpaired(student: NetworkResult, other: NetworkResult, words: str) -> str:
    """Compare by the intervals of both accuracies, which say less than that of a paired difference."""
    which = f"{words}, which has {pct(other.top1)}"
    if student.interval[0] > other.interval[1]:
        return f"It is better than {which}."
    if student.interval[1] < other.interval[0]:
        return f"It is worse than {which}."
    few = "the intervals overlap, so the clips may be too few to tell which is better"
    unclear = _unclear(student.top1 - other.top1, which, is_control=other.name.startswith("control"))
    return f"{unclear}, and {few}."


def pct(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}%"


def _in_points(fraction: float) -> str:
    """Return a difference of fractions in points with one decimal."""
    return f"{100 * fraction:.1f}"


def _signed(fraction: float) -> str:
    """Return a difference of fractions in points with its sign."""
    return f"{100 * fraction:+.1f}"
