"""The division of a hop's epochs among its phases."""

from __future__ import annotations

from collections.abc import Mapping

from stagedkd.spec.schema import Phase


def phase_epochs(phases: Mapping[str, Phase], total: int | None, parts: int) -> dict[str, int]:
    """Return the epochs of each phase; under one_by_one, the epochs of each substage.

    One phase may leave out its epochs. It gets what the other phases leave of `total`.

    Args:
        phases: the phases by name, in order.
        total: the epochs of the whole hop; None if the spec does not set them.
        parts: the number of student substages.
    Raises:
        PhaseProblem: the epochs are missing, used up, or do not add up.
    """
    spans = {name: max(1, parts) if phase.substages == "one_by_one" else 1 for name, phase in phases.items()}
    taken = sum(phase.epochs * spans[name] for name, phase in phases.items() if phase.epochs)
    left_open = [name for name, phase in phases.items() if phase.epochs is None]
    if not left_open:
        if total not in (None, taken):
            hint = f"set epochs to {taken}, or remove it"
            raise PhaseProblem("", f"the phases take {taken} epochs, but epochs is {total}", hint)
        return {name: phase.epochs for name, phase in phases.items() if phase.epochs}
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
    return {key: phase.epochs or rest // spans[key] for key, phase in phases.items()}


class PhaseProblem(ValueError):
    """A problem with the epochs: the phase ("" if it is the sum), the message and the hint."""

    def __init__(self, phase: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.phase, self.hint = phase, hint
