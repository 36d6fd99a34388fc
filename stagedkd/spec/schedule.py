"""How the epochs of a hop are dealt to its phases."""

from __future__ import annotations

from collections.abc import Mapping

from stagedkd.spec.schema import Phase


def phase_epochs(phases: Mapping[str, Phase], total: int | None, parts: int) -> dict[str, int]:
    """Epochs of each phase (of each substage under one_by_one); one phase may leave them to what the others leave of
    `total`. `parts` is the number of substages.

    Raises:
        PhaseProblem: the epochs are missing, used up, or do not add up.
    """
    spans = {name: max(1, parts) if phase.substages == "one_by_one" else 1 for name, phase in phases.items()}
    taken = sum(phase.epochs * spans[name] for name, phase in phases.items() if phase.epochs)
    left_open = [name for name, phase in phases.items() if phase.epochs is None]
    if not left_open:
        if total not in (None, taken):
            raise PhaseProblem(
                "", f"the phases take {taken} epochs, and epochs says {total}", "leave one of the two out"
            )
        return {name: phase.epochs for name, phase in phases.items() if phase.epochs}
    name = left_open[-1]
    if total is None:
        raise PhaseProblem(name, f"phase '{name}' has no epochs", "add epochs:, or student.epochs for the whole hop")
    if len(left_open) > 1:
        raise PhaseProblem(name, f"{len(left_open)} phases leave out epochs; one may", "add epochs: to the others")
    rest = total - taken
    if rest < spans[name]:
        hint = f"raise student.epochs above {taken}"
        raise PhaseProblem(name, f"phase '{name}' trains nothing: the others take {taken} of {total} epochs", hint)
    if rest % spans[name]:
        hint = "add epochs: to this phase"
        raise PhaseProblem(name, f"{rest} epochs cannot be dealt to {spans[name]} substages evenly", hint)
    return {key: phase.epochs or rest // spans[key] for key, phase in phases.items()}


class PhaseProblem(ValueError):
    """What is wrong with the epochs: the phase ("" for the sum), the fault, and the mend."""

    def __init__(self, phase: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.phase, self.hint = phase, hint
