"""The cuts of networks into substages: declared, or natural cuts where stride or width changes."""

from __future__ import annotations

from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import Student, Teacher
from stagedkd.spec.schema.networks.base import Cut, merge_cut


def student_cut(network: Teacher | Student) -> Cut:
    """Return the declared substages, or the natural cut if none are declared."""
    return network.substages or network.natural_cut


def matching_cut(network: Teacher | Student, parts: int) -> Cut:
    """Return the cut of a teacher that matches `parts` student substages one to one.

    A natural cut with more substages is merged by depth.

    Raises:
        ValueError: the teacher has fewer substages, or declares another number of them.
    """
    if network.substages is not None:
        if len(network.substages) != parts:
            declared = len(network.substages)
            raise ValueError(f"it declares {declared} substages, and the student has {parts}; declare {parts}")
        return network.substages
    if not network.natural_cut:
        raise ValueError("a network of arch: file must declare its substages")
    return merge_cut(network.natural_cut, parts)


def cut_problems(cut: Cut, names: tuple[str, ...]) -> list[PathProblem]:
    """Return what is wrong with a declared cut of a network with blocks `names`. Paths are relative to the cut."""
    problems: list[PathProblem] = []
    blocks = [(block, (i, j)) for i, run in enumerate(cut) for j, block in enumerate(run)]
    seen: dict[str, tuple[int, int]] = {}
    for block, path in blocks:
        if block not in names:
            problems.append(PathProblem(f"there is no block '{block}'", path, f"the blocks are {', '.join(names)}"))
        elif block in seen:
            message = f"block '{block}' is already in substage {seen[block][0] + 1}"
            problems.append(PathProblem(message, path, "list each block once"))
        seen.setdefault(block, path)
    if not problems and tuple(block for block, _ in blocks) != names:
        missing = [name for name in names if name not in seen]
        order = "the blocks are not in the network's order"
        message = f"the cut leaves out {', '.join(missing)}" if missing else order
        problems.append(PathProblem(message, (), f"list all blocks in order: {', '.join(names)}"))
    return problems
