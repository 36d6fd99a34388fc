"""The cuts of networks into substages: declared, or natural cuts where stride or width changes."""

from __future__ import annotations

from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import Student, Teacher
from stagedkd.spec.schema.networks.base import Cut, merge_cut


def student_cut(network: Teacher | Student) -> Cut:
    """Return the declared substages, or the natural cut if none are declared; empty if the network has neither.

    A number that is too large gives as many as there are: `number_problem` refuses the spec.
    """
    if isinstance(network.substages, int):
        finest = network.mergeable_cut
        return merge_cut(finest, min(network.substages, len(finest))) if finest else ()
    return network.substages or network.natural_cut


def matching_cut(network: Teacher | Student, parts: int) -> Cut:
    """Return the cut of a teacher that matches `parts` student substages one to one.

    A natural cut with more substages is merged by depth.

    Raises:
        ValueError: the teacher has fewer substages, or declares another number of them.
    """
    cut = finest_cut(network)
    if network.substages is None:
        return merge_cut(cut, parts)
    if len(cut) != parts:
        raise ValueError(f"it declares {len(cut)} substages, and the student has {parts}; declare {parts}")
    return cut


def finest_cut(network: Teacher | Student) -> Cut:
    """Return the declared substages, or the natural cut; raise ValueError if the network has neither."""
    cut = student_cut(network)
    if not cut:
        raise ValueError("a network of arch: file must declare its substages")
    return cut


def number_problem(network: Teacher | Student) -> PathProblem | None:
    """Return why a network cannot be cut into the declared number of substages, if so."""
    finest = network.mergeable_cut
    if not isinstance(network.substages, int) or network.only_teaches or network.substages <= len(finest):
        return None
    if not finest:
        return PathProblem("its blocks are not known, so a number cannot cut it", (), "list the runs of its blocks")
    runs = ", ".join(f"[{', '.join(run)}]" for run in finest)
    message = f"a number cuts this network into at most {len(finest)} substages, not {network.substages}: {runs}"
    return PathProblem(message, (), "lower it, or list finer runs of its blocks")


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
