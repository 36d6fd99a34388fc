"""The division of a hop's epochs among its phases, and of a phase's epochs among its substages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from stagedkd.spec.schema import Phase


def phase_epochs(phases: Mapping[str, Phase], total: int | None, parts: int) -> dict[str, tuple[int, ...]]:
    """Return the epochs of each phase: one number, or under one_by_one one for each substage.

    Phases with a share get whole epochs by largest remainders (see `apportion`). One phase may have neither epochs nor
    a share. It gets what the other phases leave of `total`.

    Args:
        phases: the phases by name, in order.
        total: the epochs of the whole hop; None if the spec does not set them.
        parts: the number of student substages.
    Raises:
        PhaseProblem: the epochs are missing, used up, or do not add up.
    """
    spans = {name: max(1, parts) if phase.substages == "one_by_one" else 1 for name, phase in phases.items()}
    whole = {name: phase.epochs * spans[name] for name, phase in phases.items() if phase.epochs}
    left_open = [name for name, phase in phases.items() if phase.epochs is None and phase.share is None]
    if any(phase.share for phase in phases.values()):
        whole |= _shared_epochs(phases, total, spans, sum(whole.values()), len(left_open))
    taken = sum(whole.values())
    if not left_open:
        if total not in (None, taken):
            hint = f"set epochs to {taken}, or remove it"
            raise PhaseProblem("", f"the phases take {taken} epochs, but epochs is {total}", hint)
        return {name: _split(whole[name], spans[name]) for name in phases}
    name = left_open[-1]
    if total is None:
        raise PhaseProblem(name, f"phase '{name}' has no epochs", "add epochs:, or student.epochs for the whole hop")
    if len(left_open) > 1:
        message = f"{len(left_open)} phases leave out epochs, but only one may"
        raise PhaseProblem(name, message, "add epochs: to the others")
    rest = total - taken
    if rest < spans[name]:
        hint = f"raise student.epochs above {taken}"
        raise PhaseProblem(name, f"phase '{name}' trains nothing: the others take {taken} of {total} epochs", hint)
    if rest % spans[name]:
        hint = "add epochs: to this phase"
        raise PhaseProblem(name, f"{rest} epochs cannot be divided evenly among {spans[name]} substages", hint)
    return {key: _split(whole.get(key, rest), spans[key]) for key in phases}


def apportion(quotas: Sequence[Fraction], least: Sequence[int], total: int) -> list[int]:
    """Divide `total` into whole numbers near `quotas`, each at least its `least`: the whole part of each quota, then
    one more where the remainder is largest (Hamilton). If the least numbers take too much, those that are furthest
    above their quota give it back. Of equal remainders, the first is served first. Requires sum(least) <= total."""
    counts = [max(n, math.floor(quota)) for quota, n in zip(quotas, least, strict=True)]
    while sum(counts) < total:
        counts[max(range(len(counts)), key=lambda i: quotas[i] - counts[i])] += 1
    while sum(counts) > total:
        above = [i for i in range(len(counts)) if counts[i] > least[i]]
        counts[min(above, key=lambda i: quotas[i] - counts[i])] -= 1
    return counts


def _shared_epochs(
    phases: Mapping[str, Phase], total: int | None, spans: Mapping[str, int], taken: int, left_open: int
) -> dict[str, int]:
    """Return the epochs of the phases with a share.

    Args:
        spans: the least epochs of each phase. taken: the epochs of phases with `epochs`. left_open: the number of
            phases without either.
    """
    shares = {name: Fraction(repr(phase.share)) for name, phase in phases.items() if phase.share is not None}
    last = list(shares)[-1]
    if total is None:
        message = f"phase '{last}' has a share, but the hop has no epochs"
        raise PhaseProblem(last, message, "add student.epochs", "share")
    quotas = [share * total for share in shares.values()]
    exact = taken + sum(quotas, Fraction(0))
    if exact - total >= Fraction(1, 2) or (not left_open and total - exact >= Fraction(1, 2)):
        others = f" and the epochs of the other phases to {taken} of {total}" if taken else ""
        message = f"the shares add up to {float(sum(shares.values())):g}{others}: "
        message += f"that is {float(exact):g} epochs of {total}"
        raise PhaseProblem(last, message, "change the shares, or remove one: that phase gets the rest", "share")
    least = [spans[name] for name in shares]
    budget = math.floor(sum(quotas, Fraction(0)) + Fraction(1, 2)) if left_open else total - taken
    budget = max(budget, sum(least)) if left_open else budget
    if sum(least) > budget:
        short = min(shares, key=lambda name: shares[name] * total - spans[name])
        message = f"phase '{short}' gets less than an epoch" + (" for each substage" if spans[short] > 1 else "")
        raise PhaseProblem(short, message, f"raise its share, or student.epochs above {total}", "share")
    return dict(zip(shares, apportion(quotas, least, budget), strict=True))


def _split(epochs: int, parts: int) -> tuple[int, ...]:
    """Divide the epochs of a phase among its parts as evenly as whole epochs allow; the first ones get one more."""
    return tuple(epochs // parts + (i < epochs % parts) for i in range(parts))


class PhaseProblem(ValueError):
    """A problem with the epochs: the phase ("" if it is the sum), the message, the hint, and the phase's `field`."""

    def __init__(self, phase: str, message: str, hint: str, field: str = "") -> None:
        super().__init__(message)
        self.phase, self.hint, self.field = phase, hint, field
