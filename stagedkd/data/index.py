"""The index of a data set: which clips there are, in which group and split, with which true label.

Torch-free. `folder` and `csv` are read here; simulated sets get theirs from their numbers.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stagedkd.data.draws import bits, permutation
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Data, Folder, Grouped, Shapes

VIDEO_SUFFIXES = frozenset(
    [".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".ts", ".3gp"]
)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Entry:
    """One clip. `label` is a class name, "" where there is none; `trusted` says that the label is no noisy one;
    `split` is "" until the split is drawn."""

    path: str
    label: str
    group: str
    split: str = ""
    trusted: bool = True


def list_clips(data: Data, data_dir: Path) -> tuple[Path, list[Entry]]:
    """The clips of a data set on the disk, sorted by path, and the folder their paths are relative to.

    Raises:
        UsageError: the folder or table is missing. DataError: the table is wrong, with file and line.
    """
    match data:
        case Folder():
            return _list_folder(data_dir / data.path)
        case Csv():
            return _list_csv(data_dir / data.path)
        case Shapes():
            raise AssertionError("simulated sets have no files")
        case _:
            raise UsageError("the layout ucf101 is planned but not read yet", hint="use csv or folder for now")


def _missing(path: Path, what: str) -> UsageError:
    hint = "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml"
    return UsageError(f"no {what} {path}", hint=hint)


def _list_folder(root: Path) -> tuple[Path, list[Entry]]:
    if not root.is_dir():
        raise _missing(root, "folder")
    entries = [
        Entry(path.relative_to(root).as_posix(), folder.name, path.relative_to(root).as_posix())
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    ]
    if not entries:
        raise DataError(f"no videos below {root}", hint="one folder a class, videos inside: CLASS/CLIP.mp4")
    return root, entries


def _list_csv(table: Path) -> tuple[Path, list[Entry]]:
    if not table.is_file():
        raise _missing(table, "table")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            unknown = columns - {"path", "label", "group", "split", "clean"}
            if unknown or not {"path", "label"} <= columns:
                what = f"unknown column '{min(unknown)}'" if unknown else "columns path and label are needed"
                raise DataError(f"{table}:1: {what}", hint="columns are path,label[,group][,split][,clean]")
            entries = [_row(table, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a table in UTF-8: {error}") from None
    if not entries:
        raise DataError(f"{table} lists no clips")
    path, times = Counter(e.path for e in entries).most_common(1)[0]
    if times > 1:
        raise DataError(f"{table}: {path} stands {times} times")
    return table.parent, sorted(entries, key=lambda e: e.path)


def _row(table: Path, line: int, row: dict[str, str | None]) -> Entry:
    path, split, clean = (row.get("path") or "").strip(), row.get("split") or "", row.get("clean") or "1"
    if not path:
        raise DataError(f"{table}:{line}: no path")
    if split not in ("", *SPLITS):
        raise DataError(f"{table}:{line}: split '{split}' is none of train, val, test")
    if clean not in ("0", "1"):
        raise DataError(f"{table}:{line}: clean is 0 or 1, not '{clean}'")
    label = (row.get("label") or "").strip()
    if split in ("val", "test") and not label:
        raise DataError(f"{table}:{line}: a {split} clip needs a label")
    return Entry(path, label, (row.get("group") or "").strip() or path, split, clean == "1")


def classes_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Class names in the order of their ids: sorted."""
    return tuple(sorted({e.label for e in entries} - {""}))


def split_entries(entries: Sequence[Entry], data: Grouped) -> list[Entry]:
    """Give every entry without a split one, so that no group is in two.

    Groups are shuffled by seed and dealt one by one to the fold that has fewest clips of the group's classes.
    A given split wins and takes its whole group along.
    """
    given = {e.group: e.split for e in entries if e.split}
    torn = sorted({e.group for e in entries if e.split and e.split != given[e.group]})
    if torn:
        raise DataError(f"group {torn[0]} is in more than one split", hint="a group belongs to one split whole")
    folds = _deal([e for e in entries if e.group not in given], data)

    def split(entry: Entry) -> str:
        if entry.group in given:
            return entry.split or given[entry.group]
        turn = (folds[entry.group] - data.fold) % data.folds
        return "val" if turn < data.val_folds else "test" if turn < data.val_folds + data.test_folds else "train"

    placed = [Entry(e.path, e.label, e.group, split(e), e.trusted) for e in entries]
    return [e for e in placed if e.split == "train" or (e.label and e.trusted)]


def _deal(entries: Sequence[Entry], data: Grouped) -> dict[str, int]:
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        members[entry.group].append(entry)
    names = sorted(members)
    order = [names[i] for i in permutation(len(names), data.seed, 71)]
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
    return sum(filled[fold][label] for label in labels), load[fold], int(bits(seed, 72, fold).item() >> 40)


def require_classes(entries: Sequence[Entry], classes: Sequence[str]) -> None:
    """Raises DataError naming the classes that have no training clip."""
    there = {e.label for e in entries if e.split == "train"}
    missing = [name for name in classes if name not in there]
    if missing:
        hint = "add clips or groups, or change data.folds or data.seed"
        raise DataError(f"no training clip of class {', '.join(missing)}", hint=hint)
