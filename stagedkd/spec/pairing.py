"""The pairs of student and teacher substages that a hop compares, as far as they follow from the spec alone.

Under `correlation`, `mixed` and `review` this module gives the allowed pairs; training mixes or fuses them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from typing import Final, Literal, TypeAlias

from stagedkd.spec.cuts import finest_cut, matching_cut, student_cut
from stagedkd.spec.schema import Spec, Student, Teacher
from stagedkd.spec.schema.networks.base import Cut

Pair: TypeAlias = tuple[int, int]
MIXED: Final = ("correlation", "mixed")  # the pairings that compare each teacher substage with a mixture


@dataclass(frozen=True)
class Matching:
    """The comparison of a hop: the teacher's cut, and the pairs (student, teacher) of substages, counted from 0."""

    kind: Literal["pairs", "correlation", "mixed", "review"]
    teacher_cut: Cut
    pairs: tuple[Pair, ...]

    def of(self, trained: tuple[int, ...]) -> tuple[Pair, ...]:
        """Return the pairs of a phase that trains these student substages and runs nothing after the last of them.

        In a mixture, a phase takes the teacher substages that end nearest to what it trains, and only the
        substages that it trains are mixed: what is frozen cannot learn, and would take the match from what can.
        """
        if self.kind not in MIXED:
            return tuple(pair for pair in self.pairs if pair[0] in trained)
        students, teachers = 1 + max(k for k, _ in self.pairs), len(self.teacher_cut)
        allowed = {m for m in range(teachers) if _nearest_by_depth(m, teachers, students) in trained}
        allowed = allowed or {_nearest_by_depth(max(trained), students, teachers)}
        return tuple((k, m) for k, m in self.pairs if m in allowed and k in trained)


def matching(spec: Spec, student: Student, teacher: Teacher | Student) -> Matching:
    """Return the matching of a hop.

    Raises:
        ValueError: a cut is missing, or explicit pairs name substages that do not exist.
    """
    pairing, cut = spec.distill.pairing, student_cut(student)
    if not cut:
        raise ValueError("the smaller network of the hop is of arch: file and must declare its substages")
    if pairing in ("auto", "review"):
        kind = "review" if pairing == "review" else "pairs"
        try:
            one_to_one = matching_cut(teacher, len(cut))
            return Matching(kind, one_to_one, tuple((k, k) for k in range(len(cut))))
        except ValueError:
            teacher_cut = finest_cut(teacher)
            return Matching(kind, teacher_cut, _by_stride(student, cut, teacher, teacher_cut))
    teacher_cut = finest_cut(teacher)
    if isinstance(pairing, tuple):
        return Matching("pairs", teacher_cut, _explicit_pairs(pairing, len(cut), len(teacher_cut)))
    if pairing in MIXED:
        return Matching(pairing, teacher_cut, band(len(cut), len(teacher_cut)))
    if pairing == "stride":
        return Matching("pairs", teacher_cut, _by_stride(student, cut, teacher, teacher_cut))
    assert pairing == "depth"
    by_depth = tuple((k, _nearest_by_depth(k, len(cut), len(teacher_cut))) for k in range(len(cut)))
    return Matching("pairs", teacher_cut, by_depth)


def _nearest_by_depth(index: int, count: int, others: int) -> int:
    """Return which of `others` substages ends nearest to the end of substage `index` of `count`, as fractions of the
    depth. The deeper one of two equally near ones wins."""
    end = (index + 1) / count
    return min(range(others), key=lambda other: (round(abs((other + 1) / others - end), 9), -other))


def band(students: int, teachers: int) -> tuple[Pair, ...]:
    """Return all pairs whose middles, as fractions of the depth, are at most one substage of the coarser cut apart.

    The limit keeps a mixture over these pairs in the order of depth.
    """
    reach = 1 / min(students, teachers) + 1e-9
    return tuple(
        (k, m)
        for k in range(students)
        for m in range(teachers)
        if abs((k + 0.5) / students - (m + 0.5) / teachers) <= reach
    )


def graft_pairs(pairs: Iterable[Pair], students: int, teachers: int) -> tuple[Pair, ...]:
    """Return the pairs of a graft: each student substage of `pairs` with that one of its teacher substages that ends
    nearest to its own end, as fractions of the depth; of two equally near ones the deeper.

    Args:
        students, teachers: numbers of substages of both networks.
    """
    rows: dict[int, list[int]] = {}
    for k, m in sorted(pairs):
        rows.setdefault(k, []).append(m)
    ends = {m: (m + 1) / teachers for m in range(teachers)}
    return tuple(
        (k, min(ms, key=lambda m: (round(abs(ends[m] - (k + 1) / students), 9), -m))) for k, ms in rows.items()
    )


def _by_stride(student: Student, cut: Cut, teacher: Teacher | Student, teacher_cut: Cut) -> tuple[Pair, ...]:
    """Pair each student substage with the teacher substage of the nearest reduction of height and width.

    Ties go to the nearest depth. If the strides of a network are unknown, depth alone decides.
    """
    student_strides, teacher_strides = student.strides, teacher.strides
    pairs: list[Pair] = []
    for k, run in enumerate(cut):
        distances: list[tuple[float, float, int]] = []  # of stride, of depth, and minus the index
        for m, above in enumerate(teacher_cut):
            apart = 0.0
            if student_strides and teacher_strides:
                apart = abs(log2(student_strides[run[-1]] / teacher_strides[above[-1]]))
            distances.append((apart, round(abs((m + 1) / len(teacher_cut) - (k + 1) / len(cut)), 9), -m))
        pairs.append((k, -min(distances)[2]))
    return tuple(pairs)


def _explicit_pairs(numbers: tuple[Pair, ...], students: int, teachers: int) -> tuple[Pair, ...]:
    """Return pairs counted from 0, sorted, of pairs that a spec counts from 1. Raises ValueError if one is wrong."""
    for k, m in numbers:
        if k > students or m > teachers:
            who, number, count = ("student", k, students) if k > students else ("network above it", m, teachers)
            raise ValueError(f"pair [{k}, {m}]: there is no substage {number}, the {who} has {count}")
    if len(set(numbers)) != len(numbers):
        raise ValueError("a pair is listed twice")
    return tuple(sorted((k - 1, m - 1) for k, m in numbers))
