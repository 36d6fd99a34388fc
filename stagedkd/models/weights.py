"""Fit the tensors of a weight file to a network: find the one dict that is the network's, under whatever name and
prefix, and say what was done."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagedkd.errors import DataError
from stagedkd.files import FileBytes
from stagedkd.models.head import Given, Head, named_classes
from stagedkd.models.network import Network
from stagedkd.models.quantise import holds_quantisers
from stagedkd.models.weight_file import Content, read_content, shown

DEEPEST = 5  # dicts in dicts in which tensors are looked for
MOST = 12  # problems listed
COUNTERS = ("num_batches_tracked",)  # of norms; old files have none
STEPS = re.compile(r"(.*\.)?(n_averaged|num_updates|initted|step)")  # how often a mean of weights was updated
MEAN = re.compile(r"(^|[^a-z])(ema|swa|averaged?|avg|shadow)([^a-z]|$)|modelema|emamodel")


@dataclass(frozen=True)
class _Fit:
    """One dict of tensors of a file, read with a prefix, against a network.

    place: the keys of the dict in the file. names: of the network, with the names in the file. new: the head's tensors
    that it lacks or has for another number of classes. problems: what does not fit, in words. copies: names of another
    copy of the network. steps: names of counters. renamed: the head's name there and here, where these differ.
    """

    place: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    prefix: str
    names: Mapping[str, str]
    new: tuple[str, ...]
    problems: tuple[str, ...]
    copies: tuple[str, ...]
    steps: tuple[str, ...]
    renamed: tuple[str, str] | None

    @property
    def is_mean(self) -> bool:
        """Whether its names say that it is a mean of weights over the training (EMA, SWA)."""
        words = " ".join((*self.place, self.prefix)).lower()
        return bool(MEAN.search(words)) or "n_averaged" in self.tensors

    @property
    def title(self) -> str:
        where = ".".join(self.place)
        below = f"'{shown(where)}'" if where else "the file's top level"
        return below + (f" with the prefix '{shown(self.prefix)}'" if self.prefix else "")


def read_weights(file: FileBytes, network: Network, head: Head, classes: Sequence[str] = ()) -> Given:
    """Read what a weight file gives a network. The network is not changed; it may be on the meta device.

    Args:
        head: the outputs that the network must have. Tensors of `head.dims` may be missing, or be for another number of
            classes. classes: the names of the file's outputs, where they are known from elsewhere.
    Raises:
        DataError: the file cannot be read; names or shapes do not match (the message lists them); several networks in
            it fit; or numbers are not finite.
    """
    path, content = file.path, read_content(file)
    current = network.net.state_dict()
    fit, others = _choose(path, list(_fits(content.tree, current, head)))
    tensors, casts = _tensors(path, fit, current)
    counts = {fit.tensors[fit.names[n]].shape[d] for n, d in head.dims.items() if n in fit.names}
    outputs = next(iter(counts)) if len(counts) == 1 else None if head.dims else len(head.classes)
    try:
        named = tuple(classes) or (named_classes(content, outputs, head.classes) if outputs else ())
    except DataError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from None
    notes = (*_notes(content, fit, others), *casts)
    return Given(tensors, fit.new, outputs, named if outputs == len(named) else (), notes)


def _fits(tree: Any, current: Mapping[str, Tensor], head: Head) -> Iterator[_Fit]:
    """Yield how each dict of tensors of a file fits a network, under each prefix with which it has names of it."""
    for place, tensors in _dicts(tree, ()):
        prefixes = Counter(p for name in tensors for p in _prefixes(name) if name[len(p) :] in current)
        most = max(prefixes.values(), default=0)
        for prefix in [p for p, count in prefixes.items() if count == most] or [""]:
            yield _fit(place, tensors, prefix, [p for p in prefixes if p != prefix], current, head)


def _dicts(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the named tensors of each dict of a tree, with the keys that lead to the dict."""
    if not isinstance(tree, Mapping) or len(place) > DEEPEST:
        return
    tensors = {name: t for name, t in tree.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if tensors:
        yield place, tensors
    for name, below in tree.items():
        yield from _dicts(below, (*place, str(name)))


def _prefixes(name: str) -> Iterator[str]:
    yield ""
    yield from (name[: dot.end()] for dot in re.finditer(r"\.", name))


def _fit(
    place: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    prefix: str,
    others: Sequence[str],
    current: Mapping[str, Tensor],
    head: Head,
) -> _Fit:
    """Compare a dict of tensors under a prefix with a network."""
    names = {n[len(prefix) :]: n for n in tensors if n.startswith(prefix) and n[len(prefix) :] in current}
    used, copies = set(names.values()), list[str]()
    for other in others:  # another copy of the network, such as a mean of its weights
        below = [n for n in tensors if n.startswith(other) and n not in used]
        if below and all(_same(tensors[n], current.get(n[len(other) :])) for n in below):
            copies += below
    steps = [n for n in tensors if n not in used and _is_step(n, tensors[n])]
    extra = [n for n in tensors if n not in used and n not in copies and n not in steps]
    missing = [n for n in current if n not in names and not n.endswith(COUNTERS)]
    renamed = _renamed_head(tensors, extra, missing, current, head)
    if renamed:
        names |= {n: f"{renamed[0]}.{n.rpartition('.')[2]}" for n in missing}
        extra, missing = [], []
    other_count = [n for n, d in head.dims.items() if n in names and _other_classes(tensors[names[n]], current[n], d)]
    absent = [n for n in head.dims if n in missing]
    new = (*other_count, *absent) if len(other_count) + len(absent) == len(head.dims) else ()
    ranges = [n for n in extra if holds_quantisers([n])]
    problems = ["it was trained for int8: take the weights of a run without student.quantise"] if ranges else []
    problems += [f"{shown(n)} is not in the network" for n in extra if n not in ranges]
    problems += [f"{n} is missing in the file" for n in missing if n not in new]
    problems += [_unequal(n, tensors[names[n]], current[n]) for n in names if n not in new]
    found = tuple(filter(None, problems))
    return _Fit(place, tensors, prefix, names, new, found, tuple(copies), tuple(steps), renamed)


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape


def _is_step(name: str, tensor: Tensor) -> bool:
    return tensor.numel() == 1 and not tensor.is_floating_point() and STEPS.fullmatch(name) is not None


def _other_classes(saved: Tensor, current: Tensor, dim: int) -> bool:
    """Whether two tensors differ in the number of classes alone."""
    shapes = [[size for d, size in enumerate(t.shape) if d != dim] for t in (saved, current)]
    return saved.ndim == current.ndim and shapes[0] == shapes[1] and saved.shape != current.shape


def _renamed_head(
    tensors: Mapping[str, Tensor],
    extra: Sequence[str],
    missing: Sequence[str],
    current: Mapping[str, Tensor],
    head: Head,
) -> tuple[str, str] | None:
    """Return the name of the last layer in a file and in the network, if it has all that is left over in the one and
    missing in the other, in equal shapes but for the number of classes."""
    there, here = ({n.rpartition(".")[0] for n in names} for names in (extra, missing))
    if set(missing) != head.dims.keys() or len(there) != 1 or len(here) != 1 or len(extra) != len(missing):
        return None
    old, new = there.pop(), here.pop()
    for name in missing:
        saved = tensors.get(f"{old}.{name.rpartition('.')[2]}")
        if saved is None or not (_same(saved, current[name]) or _other_classes(saved, current[name], head.dims[name])):
            return None
    return old, new


def _unequal(name: str, saved: Tensor, current: Tensor) -> str:
    """Return why a tensor cannot take the place of the network's, or ""."""
    if saved.shape != current.shape:
        return f"{name}: {tuple(saved.shape)} in the file, {tuple(current.shape)} in the network"
    kind = str(saved.dtype).removeprefix("torch.")
    if saved.is_quantized or saved.is_complex() or saved.is_floating_point() != current.is_floating_point():
        return f"{name}: {kind} in the file, {str(current.dtype).removeprefix('torch.')} in the network"
    if saved.layout != torch.strided:
        return f"{name}: it is sparse in the file"
    return f"{name}: it has no numbers in the file (meta device)" if saved.is_meta else ""


def _choose(path: Path, fits: Sequence[_Fit]) -> tuple[_Fit, list[_Fit]]:
    """Choose the dict of tensors that fits a network, with its head if one has it. Where the weights and their mean
    over the training fit, the mean is taken: it is what the field evaluates.

    Returns:
        the chosen one, and the others that fit as well.
    Raises:
        DataError: none fits, or several do.
    """
    if not fits:
        raise DataError(f"{path} does not hold a state dict", hint="save the weights of a network: net.state_dict()")
    whole = [fit for fit in fits if not fit.problems]
    whole = [fit for fit in whole if not fit.new] or whole
    means = [fit for fit in whole if fit.is_mean]
    if len(whole) > 1 and len(means) != 1:
        named = " and ".join(fit.title for fit in (means or whole)[:3])
        hint = "write the one that you mean into a file of its own: torch.save(content[KEY], FILE)"
        raise DataError(f"{path} holds several networks that fit: {named}", hint=hint)
    if whole:
        chosen = (means or whole)[0]
        return chosen, [fit for fit in whole if fit is not chosen]
    best = min(fits, key=lambda fit: (-len(fit.names), len(fit.problems)))
    rows, more = best.problems[:MOST], len(best.problems) - MOST
    listed = "\n    ".join(rows) + (f"\n    and {more} more" if more > 0 else "")
    where = f" ({best.title})" if best.place or best.prefix else ""
    raise DataError(f"{path} does not fit the network{where}:\n    {listed}")


def _tensors(path: Path, fit: _Fit, current: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by the network's names and in its types, and a note for each type that was cast.

    Raises:
        DataError: a tensor has numbers that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    cast: Counter[tuple[str, str]] = Counter()
    broken: list[str] = []
    for name, there in fit.names.items():
        if name in fit.new:
            continue
        saved, kind = fit.tensors[there].detach(), current[name].dtype
        if saved.dtype != kind:
            cast[str(saved.dtype).removeprefix("torch."), str(kind).removeprefix("torch.")] += 1
        tensors[name] = saved.to(kind)
        if not bool(torch.isfinite(tensors[name]).all()):
            broken.append(name)
    if broken:
        some = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if broken[3:] else "")
        hint = "its training diverged, or the file is damaged: take an earlier checkpoint"
        raise DataError(f"{path} has numbers that are not finite: {some}", hint=hint)
    return tensors, [f"{n} tensors of {old} are cast to {new}" for (old, new), n in cast.items()]


def _notes(content: Content, fit: _Fit, others: Sequence[_Fit]) -> Iterator[str]:
    """Say which part of a file was taken, and what was left out."""
    if fit.place or fit.prefix:
        where = f"below '{shown('.'.join(fit.place))}'" if fit.place else "at the top level"
        prefix = f", without the prefix '{shown(fit.prefix)}'" if fit.prefix else ""
        yield f"the weights are those {where}{prefix}"
    if others:
        plain = " and ".join(other.title for other in others)
        yield f"{fit.title} and {plain} fit: the first is taken, a mean of the weights over the training"
    if fit.renamed:
        yield f"the head is called {shown(fit.renamed[0])} there, and {fit.renamed[1]} here"
    at = fit.place[0] if fit.place else None
    rest = {name: value for name, value in content.tree.items() if at is None or name != at}
    left = [str(name) for name, value in rest.items() if fit.place or not isinstance(value, Tensor)]
    if left := [*left, *fit.steps]:
        more = f" and {len(left) - 8} more" if left[8:] else ""
        yield f"not loaded: {', '.join(map(shown, left[:8]))}{more}"
    taken = {id(other.tensors) for other in others}
    if fit.copies and id(fit.tensors) not in taken:
        yield f"not loaded: {len(fit.copies)} tensors of another copy of the network, such as {shown(fit.copies[0])}"
