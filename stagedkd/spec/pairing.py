"""Which teacher substage each student substage is held against, resolved as far as plain data go: `correlation` is
measured and `review` fused in training, on the pairs that are allowed here."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal, TypeAlias

from stagedkd.spec.cuts import Cut, matching_cut, natural_cut, student_cut
from stagedkd.spec.schema import NetworkFields, Resnet3dArch, Spec, TorchvisionArch
from stagedkd.spec.zoo import ZOO

Pair: TypeAlias = tuple[int, int]

# Reduction of height and width behind the first block, and the blocks that halve them again.
HALVING: dict[str, tuple[int, frozenset[str]]] = {
    "resnet": (2, frozenset({"layer2", "layer3", "layer4"})),
    "s3d": (2, frozenset({"pool1", "pool2", "pool3", "pool4"})),
    "mvit": (4, frozenset({"block2", "block4", "block15"})),
    "swin3d": (4, frozenset({"merge1", "merge2", "merge3"})),
}


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


def matching(spec: Spec, student: NetworkFields, teacher: NetworkFields) -> Matching:
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


def _own_cut(teacher: NetworkFields) -> Cut:
    cut = teacher.substages or natural_cut(teacher)
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


def _by_stride(student: NetworkFields, cut: Cut, teacher: NetworkFields, theirs: Cut) -> tuple[Pair, ...]:
    """The teacher substage with the nearest reduction of height and width, then the nearest depth; depth alone where a
    network's strides are not known."""
    mine, other = strides(student), strides(teacher)
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


def strides(network: NetworkFields) -> dict[str, int] | None:
    """Reduction of height and width behind each block; None where only the built network knows."""
    if isinstance(network, Resnet3dArch):
        return {"stem": 2} | {f"layer{i + 1}": 2 ** (i + 1) for i in range(len(network.blocks))}
    if not isinstance(network, TorchvisionArch) or ZOO[network.arch].family not in HALVING:
        return None
    entry, found = ZOO[network.arch], dict[str, int]()
    reduction, halving = HALVING[entry.family]
    for name in entry.blocks:
        reduction *= 2 if name in halving else 1
        found[name] = reduction
    return found
