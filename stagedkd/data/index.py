"""The index of a data set: its clips with their groups, splits and true labels. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from stagedkd.data.address import without_part
from stagedkd.data.draws import Stream, bits, permutation
from stagedkd.errors import DataError
from stagedkd.spec.schema import FoldSplit

SPLITS = ("train", "val", "test")
NOT_LISTED = "not listed"  # the reason for which a clip on the disk is left out
A_LIST = "a list of clips or classes"  # likewise, for the lists themselves
UNUSED = "unused"  # the split of clips that an official list leaves out


@dataclass(frozen=True)
class Entry:
    """One clip.

    path: its address (data/address.py), relative to the root of the listing. label: a class name, "" if there is none.
    group: clips of a group belong to one split. split: "" until it is drawn; the training clips of an official list are
    then dealt to training and validation; an official list may also give `unused`. trusted: False if the label may be
    wrong (noisy).
    """

    path: str
    label: str
    group: str
    split: str = ""
    trusted: bool = True


@dataclass(frozen=True)
class Listing:
    """The clips of a data set.

    entries: the clips, sorted by path, relative to `root`. classes: the class names in the order of their ids.
    lists: the table or list files that define the data set, by name. left_out: reason -> the files that are no clips,
    relative to `root`. notes: what a user should know, in sentences.
    """

    root: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    lists: Mapping[str, Path] = field(default_factory=dict[str, Path])
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    notes: tuple[str, ...] = ()

    @property
    def unlisted(self) -> tuple[str, ...]:
        """The clips below the root that no list names."""
        return self.left_out.get(NOT_LISTED, ())


def split_entries(entries: Sequence[Entry], data: FoldSplit) -> list[Entry]:
    """Assign a split to each entry that has none, so that no group is in two splits; drop the `unused` entries.

    Groups that the spec names as validation are it.
    Groups are shuffled by seed and dealt one by one to the fold that has the fewest clips of the group's classes.
    A split that an entry already has wins, and its whole group follows. A validation or test split that entries have
    gets no further clips.

    Raises:
        DataError: a group is in two splits, or a group that the spec names has no clip.
    """
    entries = [e for e in entries if e.split != UNUSED]
    entries = _with_val_groups(entries, data.always_val)
    fixed = {e.group: e.split for e in entries if e.split}
    torn = sorted({e.group for e in entries if e.split and e.split != fixed[e.group]})
    if torn:
        raise DataError(f"group {torn[0]} is in more than one split", hint="put all clips of a group into one split")
    folds = _deal([e for e in entries if e.group not in fixed], data)
    val_folds = 0 if "val" in fixed.values() else data.left_for_val
    test_folds = 0 if "test" in fixed.values() else data.left_for_test

    def split_of(entry: Entry) -> str:
        if entry.group in fixed:
            return entry.split or fixed[entry.group]
        turn = (folds[entry.group] - data.fold) % data.folds
        return "val" if turn < val_folds else "test" if turn < val_folds + test_folds else "train"

    placed = [replace(e, split=split_of(e)) for e in entries]
    return [e for e in placed if e.split == "train" or (e.label and e.trusted)]  # judged by true labels alone


def _with_val_groups(entries: Sequence[Entry], groups: Sequence[str]) -> list[Entry]:
    """Give the split val to the clips of these groups that have none."""
    known = sorted({e.group for e in entries})
    unknown = [group for group in groups if group not in known]
    if unknown:
        hint = f"the groups are {', '.join(known[:12])}" + (", ..." if len(known) > 12 else "")
        raise DataError(f"data.val_groups names {unknown[0]}, of which there is no clip", hint=hint)
    return [replace(e, split="val") if e.group in groups and not e.split else e for e in entries]


def _deal(entries: Sequence[Entry], data: FoldSplit) -> dict[str, int]:
    """Return the fold of each group."""
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        members[entry.group].append(entry)
    names = sorted(members)
    order = [names[i] for i in permutation(len(names), data.seed, Stream.GROUPS)]
    order.sort(key=lambda name: -len(members[name]))  # stable: large groups first, else as shuffled
    filled = [defaultdict[str, int](int) for _ in range(data.folds)]
    load = [0] * data.folds
    chances = [int(bits(data.seed, Stream.FOLD_TIES, fold).item() >> 40) for fold in range(data.folds)]
    folds: dict[str, int] = {}
    for name in order:
        labels = [e.label for e in members[name]]
        best = min(range(data.folds), key=partial(_cost, filled, load, chances, labels))
        folds[name] = best
        load[best] += len(labels)
        for label in labels:
            filled[best][label] += 1
    return folds


def _cost(
    filled: Sequence[dict[str, int]], load: Sequence[int], chances: Sequence[int], labels: Sequence[str], fold: int
) -> tuple[int, int, int]:
    """Return the sort key of a fold for a group: its clips of the group's classes, all its clips, then chance."""
    return sum(filled[fold][label] for label in labels), load[fold], chances[fold]


def copies_across(entries: Sequence[Entry], files: Mapping[str, str]) -> list[list[str]]:
    """Find sets of paths with the same content in several splits. `files`: path -> "size:sha256", from the lock."""
    rows: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:  # two parts of a video are no copies of each other
        rows[files.get(entry.path, entry.path), without_part(entry.path)[1]].append(entry)
    return [sorted(e.path for e in row) for row in rows.values() if len({e.split for e in row}) > 1]


def require_classes(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Raise DataError naming the classes that have no training clip."""
    trained = {e.label for e in entries if e.split == "train"}
    missing = [name for name in classes if name not in trained]
    if missing:
        hint = "add clips or groups, or change data.folds or data.seed"
        raise DataError(f"no training clip of class {', '.join(missing)}", hint=hint)
