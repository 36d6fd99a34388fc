"""Where networks are cut into substages: explicit, or automatic where stride or width changes."""

from __future__ import annotations

from stagedkd.spec.schema import Student, Teacher
from stagedkd.spec.schema.networks.base import Cut, merge_cut


def student_cut(network: Teacher | Student) -> Cut:
    """The declared substages, else the natural cut."""
    return network.substages or network.natural_cut


def matching_cut(network: Teacher | Student, parts: int) -> Cut:
    """The cut of a teacher that matches `parts` student substages one to one, merged by depth where it has more.

    Raises:
        ValueError: it has fewer, or declares another number.
    """
    if network.substages is not None:
        if len(network.substages) != parts:
            raise ValueError(f"{len(network.substages)} substages against {parts} of the student; declare {parts}")
        return network.substages
    if not network.natural_cut:
        raise ValueError("one's own network must declare its substages")
    return merge_cut(network.natural_cut, parts)


def cut_problems(cut: Cut, names: tuple[str, ...]) -> list[tuple[str, tuple[int, ...], str]]:
    """What is wrong with a declared cut: (fault, place in the cut, mend)."""
    faults: list[tuple[str, tuple[int, ...], str]] = []
    flat = [(block, (i, j)) for i, run in enumerate(cut) for j, block in enumerate(run)]
    seen: dict[str, tuple[int, int]] = {}
    for block, at in flat:
        if block not in names:
            faults.append((f"there is no block '{block}'", at, f"the blocks are {', '.join(names)}"))
        elif block in seen:
            faults.append(
                (f"block '{block}' is in substage {seen[block][0] + 1} already", at, "substages do not overlap")
            )
        seen.setdefault(block, at)
    if not faults and tuple(block for block, _ in flat) != names:
        missing = [name for name in names if name not in seen]
        what = f"the cut leaves out {', '.join(missing)}" if missing else "the blocks are not in the network's order"
        faults.append((what, (), f"in order: {', '.join(names)}"))
    return faults
