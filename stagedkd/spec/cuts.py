"""Where networks are cut into substages: explicit, or automatic where stride or width changes."""

from __future__ import annotations

from typing import TypeAlias

from stagedkd.spec.schema import FileArch, HfArch, NetworkFields, Resnet3dArch, TorchvisionArch, TsmArch
from stagedkd.spec.zoo import TSM, ZOO, merge_cut, resnet3d_blocks, transformer_blocks, transformer_cut

Cut: TypeAlias = tuple[tuple[str, ...], ...]


def block_names(network: NetworkFields) -> tuple[str, ...] | None:
    """The blocks of a network, in order, without the head; None for one's own file, known only when it is built."""
    if isinstance(network, Resnet3dArch):
        return resnet3d_blocks(network.blocks)
    if isinstance(network, TorchvisionArch):
        return ZOO[network.arch].blocks
    if isinstance(network, TsmArch):
        return TSM[network.backbone].blocks
    return transformer_blocks(network.layers) if isinstance(network, HfArch) else None


def natural_cut(network: NetworkFields) -> Cut:
    """The finest automatic cut: a substage wherever stride or width changes, of a transformer four equal runs of
    layers; () for one's own file."""
    if isinstance(network, TorchvisionArch):
        return ZOO[network.arch].stages
    if isinstance(network, TsmArch):
        return TSM[network.backbone].stages
    if isinstance(network, HfArch):
        return transformer_cut(network.layers)
    names = block_names(network)
    return () if names is None else ((names[0], names[1]), *((name,) for name in names[2:]))


def student_cut(network: NetworkFields) -> Cut:
    """The declared substages, else the natural cut."""
    return network.substages or natural_cut(network)


def matching_cut(network: NetworkFields, parts: int) -> Cut:
    """The cut of a teacher that matches `parts` student substages one to one, merged by depth where it has more.

    Raises:
        ValueError: it has fewer, or declares another number.
    """
    if network.substages is not None:
        if len(network.substages) != parts:
            raise ValueError(f"{len(network.substages)} substages against {parts} of the student; declare {parts}")
        return network.substages
    stages = natural_cut(network)
    if isinstance(network, FileArch) and not stages:
        raise ValueError("one's own network must declare its substages")
    return merge_cut(stages, parts)


def cut_faults(cut: Cut, names: tuple[str, ...]) -> list[tuple[str, tuple[int, ...], str]]:
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
