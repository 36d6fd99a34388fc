"""Which teacher substage each student substage is held against, resolved as far as plain data go: `correlation` is
measured and `review` fused in training, on the pairs that are allowed here."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal, TypeAlias

from stagedkd.spec.cuts import matching_cut, student_cut
from stagedkd.spec.schema import Spec, Student, Teacher
from stagedkd.spec.schema.networks.base import Cut

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Matching:
    """How a hop compares: the teacher's cut, and the pairs (student, teacher), both from 0."""

    kind: Literal["pairs", "correlation", "review"]
    teacher_cut: Cut
    pairs: tuple[Pair, ...]

    def of(self, trained: tuple[int, ...]) -> tuple[Pair, ...]:
        """The pairs of a phase that trains these student substages and runs nothing behind the last of them."""
        if self.kind != "correlation":
            return tuple(pair for pair in self.pairs if pair[0] in trained)
        students, teachers = 1 + max(k for k, _ in self.pairs), len(self.teacher_cut)
        wanted = {m for m in range(teachers) if _level(m, teachers, students) in trained}
        wanted = wanted or {_level(max(trained), students, teachers)}
        return tuple((k, m) for k, m in self.pairs if m in wanted and k <= max(trained))


def matching(spec: Spec, student: Student, teacher: Teacher | Student) -> Matching:
    """The matching of a hop.

    Raises:
        ValueError: a cut is missing, or explicit pairs name substages that are not there.
    """
    wanted, cut = spec.distill.pairing, student_cut(student)
    if not cut:
        raise ValueError("one's own network must declare its substages, the lower one, too")
    if wanted in ("auto", "review"):
        kind = "review" if wanted == "review" else "pairs"
        try:
            same = matching_cut(teacher, len(cut))
            return Matching(kind, same, tuple((k, k) for k in range(len(cut))))
        except ValueError:
            theirs = _own_cut(teacher)
            return Matching(kind, theirs, _by_stride(student, cut, teacher, theirs))
    theirs = _own_cut(teacher)
    if wanted == "correlation":
        return Matching("correlation", theirs, band(len(cut), len(theirs)))
    if wanted == "stride":
        return Matching("pairs", theirs, _by_stride(student, cut, teacher, theirs))
    if wanted == "depth":
        return Matching("pairs", theirs, tuple((k, _level(k, len(cut), len(theirs))) for k in range(len(cut))))
    assert isinstance(wanted, tuple)
    return Matching("pairs", theirs, _explicit(wanted, len(cut), len(theirs)))


def _own_cut(teacher: Teacher | Student) -> Cut:
    cut = teacher.substages or teacher.natural_cut
    if not cut:
        raise ValueError("one's own network must declare its substages")
    return cut


def _level(place: int, of: int, others: int) -> int:
    """The one of `others` substages that ends nearest to where substage `place` of `of` ends, the deeper one of two."""
    end = (place + 1) / of
    return min(range(others), key=lambda other: (round(abs((other + 1) / others - end), 9), -other))


def band(students: int, teachers: int) -> tuple[Pair, ...]:
    """All pairs whose middles, as shares of the depth, are no further apart than a substage of the coarser cut: so a
    mixture over them keeps the order."""
    reach = 1 / min(students, teachers) + 1e-9
    return tuple(
        (k, m)
        for k in range(students)
        for m in range(teachers)
        if abs((k + 0.5) / students - (m + 0.5) / teachers) <= reach
    )


def _by_stride(student: Student, cut: Cut, teacher: Teacher | Student, theirs: Cut) -> tuple[Pair, ...]:
    """The teacher substage with the nearest reduction of height and width, then the nearest depth; depth alone where a
    network's strides are not known."""
    mine, other = student.strides, teacher.strides
    pairs: list[Pair] = []
    for k, run in enumerate(cut):
        found: list[tuple[float, float, int]] = []
        for m, above in enumerate(theirs):
            apart = abs(log2(mine[run[-1]] / other[above[-1]])) if mine and other else 0.0
            found.append((apart, round(abs((m + 1) / len(theirs) - (k + 1) / len(cut)), 9), -m))
        pairs.append((k, -min(found)[2]))
    return tuple(pairs)


def _explicit(numbers: tuple[Pair, ...], students: int, teachers: int) -> tuple[Pair, ...]:
    for k, m in numbers:
        if k > students or m > teachers:
            who, number, count = ("student", k, students) if k > students else ("network above it", m, teachers)
            raise ValueError(f"pair [{k}, {m}]: there is no substage {number}, the {who} has {count}")
    if len(set(numbers)) != len(numbers):
        raise ValueError("a pair stands twice")
    return tuple(sorted((k - 1, m - 1) for k, m in numbers))
