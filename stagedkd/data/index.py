"""The index of a data set: which clips there are, in which group and split, with which true label. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stagedkd.data.draws import Stream, bits, permutation
from stagedkd.errors import DataError
from stagedkd.spec.schema import FoldSplit

SPLITS = ("train", "val", "test")
UNUSED = "unused"  # what an official list leaves out


@dataclass(frozen=True)
class Entry:
    """One clip. `label` is a class name, "" where there is none; `trusted` says that the label is no noisy one;
    `split` is "" until the split is drawn; an official list may say `unused`. `official` training clips are dealt to
    training and validation."""

    path: str
    label: str
    group: str
    split: str = ""
    trusted: bool = True


@dataclass(frozen=True)
class Listing:
    """The clips of a data set, sorted by path, relative to `root`; the classes in the order of their ids; `lists` are
    the files that say what belongs to it, by their role; `unlisted` are videos below the root that no list names."""

    root: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    lists: Mapping[str, Path] = field(default_factory=dict[str, Path])
    unlisted: tuple[str, ...] = ()


def classes_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Class names in the order of their ids, where no list gives one: sorted."""
    return tuple(sorted({e.label for e in entries} - {""}))


def split_entries(entries: Sequence[Entry], data: FoldSplit) -> list[Entry]:
    """Give every entry without a split one, so that no group is in two; drop what the official lists leave out.

    Groups are shuffled by seed and dealt one by one to the fold that has fewest clips of the group's classes.
    A given split wins and takes its whole group along.

    Raises:
        DataError: a group is in two splits.
    """
    entries = [e for e in entries if e.split != UNUSED]
    given = {e.group: e.split for e in entries if e.split}
    torn = sorted({e.group for e in entries if e.split and e.split != given[e.group]})
    if torn:
        raise DataError(f"group {torn[0]} is in more than one split", hint="a group belongs to one split whole")
    folds = _deal([e for e in entries if e.group not in given], data)

    def split(entry: Entry) -> str:
        if entry.group in given:
            return entry.split or given[entry.group]
        turn = (folds[entry.group] - data.fold) % data.folds
        return "val" if turn < data.val_folds else "test" if turn < data.val_folds + data.left_for_test else "train"

    placed = [replace(e, split=split(e)) for e in entries]
    return [e for e in placed if e.split == "train" or (e.label and e.trusted)]


def _deal(entries: Sequence[Entry], data: FoldSplit) -> dict[str, int]:
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        members[entry.group].append(entry)
    names = sorted(members)
    order = [names[i] for i in permutation(len(names), data.seed, Stream.GROUPS)]
    order.sort(key=lambda name: -len(members[name]))  # stable: large groups first, else as shuffled
    filled = [defaultdict[str, int](int) for _ in range(data.folds)]
    load = [0] * data.folds
    folds: dict[str, int] = {}
    for name in order:
        labels = [e.label for e in members[name]]
        best = min(range(data.folds), key=partial(_cost, filled, load, labels, data.seed))
        folds[name] = best
        load[best] += len(labels)
        for label in labels:
            filled[best][label] += 1
    return folds


def _cost(
    filled: Sequence[dict[str, int]], load: Sequence[int], labels: Sequence[str], seed: int, fold: int
) -> tuple[int, int, int]:
    """How little a group is wanted in a fold: clips of its classes there, clips there, then chance."""
    chance = int(bits(seed, Stream.FOLD_TIES, fold).item() >> 40)
    return sum(filled[fold][label] for label in labels), load[fold], chance


def copies_across(entries: Sequence[Entry], files: Mapping[str, str]) -> list[list[str]]:
    """Sets of paths with the same content in more than one split. `files`: path -> "size:sha256", from the lock."""
    rows: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        rows[files.get(entry.path, entry.path)].append(entry)
    return [sorted(e.path for e in row) for row in rows.values() if len({e.split for e in row}) > 1]


def require_classes(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Raises DataError naming the classes that have no training clip."""
    there = {e.label for e in entries if e.split == "train"}
    missing = [name for name in classes if name not in there]
    if missing:
        hint = "add clips or groups, or change data.folds or data.seed"
        raise DataError(f"no training clip of class {', '.join(missing)}", hint=hint)
