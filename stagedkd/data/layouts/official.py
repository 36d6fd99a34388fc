"""The official layouts of UCF101 and HMDB51. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from stagedkd.data.index import UNUSED, Entry, Listing
from stagedkd.data.layouts.classes import is_number
from stagedkd.data.layouts.lists import left_out_of, require_once
from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.tables import read_lines
from stagedkd.data.layouts.walk import missing, walk
from stagedkd.errors import DataError

UCF_VIDEOS, UCF_LISTS = "UCF-101", "ucfTrainTestlist"
HMDB_LISTS = "testTrainMulti_7030_splits"
_GROUP = re.compile(r"_(g\d+)_c\d+$")


# ---------------------------------------------------------------- UCF101


def list_ucf101(root: Path, split: int) -> Listing:
    lists, videos = root / UCF_LISTS, root / UCF_VIDEOS
    files = {name: lists / f"{name}.txt" for name in ("classInd", f"trainlist0{split}", f"testlist0{split}")}
    layout = f"unpack the official archives to {root.name}/{UCF_VIDEOS} and {root.name}/{UCF_LISTS}"
    for path in files.values():
        if not path.is_file():
            raise missing(path, "list", f"{layout}, below --data-dir, STAGEDKD_DATA or runtime.data_dir")
    classes = tuple(name for _, name in _numbered(files["classInd"]))
    spelled = Spelling(videos)
    entries: list[Entry] = []
    for name, part in ((f"trainlist0{split}", ""), (f"testlist0{split}", "test")):
        for line, words in _lines(files[name]):
            folder, _, stem = words[0].removesuffix(".avi").rpartition("/")
            group = _GROUP.search(stem)
            if folder not in classes or group is None:
                what = "is not CLASS/v_CLASS_gNN_cNN.avi with a class of classInd.txt"
                raise DataError(f"{files[name]}:{line}: '{words[0]}' {what}")
            path = f"{UCF_VIDEOS}/{spelled(words[0])}"
            entries.append(Entry(path, folder, f"{folder}/{group[1]}", part))
    require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*.txt"))}  # of all splits: they share an entry of the lock
    return Listing(
        root,
        tuple(entries),
        classes,
        every,
        left_out_of(walk(root), root, entries),
        spelled.notes(),
    )


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Read rows `1 Name`, sorted by their numbers."""
    rows: list[tuple[int, str]] = []
    for line, words in _lines(path):
        if len(words) != 2 or not is_number(words[0]):
            raise DataError(f"{path}:{line}: must be a number and a class")
        rows.append((int(words[0]), words[1]))
    return sorted(rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line that is not empty as its number and its words. Raises DataError: it is not text in UTF-8."""
    for number, line in read_lines(path):
        yield number, line.split()


# ---------------------------------------------------------------- HMDB51


def list_hmdb51(root: Path, split: int) -> Listing:
    lists = root / HMDB_LISTS
    ending = f"_test_split{split}.txt"
    files = {p.name.removesuffix(ending): p for p in sorted(lists.glob(f"*{ending}"))}
    if not files:
        hint = f"unpack the official archives to {root.name}/{HMDB_LISTS} and {root.name}/<class>, below the data root"
        raise missing(lists / f"<class>{ending}", "list", hint)
    entries: list[Entry] = []
    spelled = Spelling(root)
    for label, path in files.items():
        for line, words in _lines(path):
            source = words[0].partition(f"_{label}_")[0]
            if len(words) != 2 or words[1] not in ("0", "1", "2") or source == words[0]:
                raise DataError(f"{path}:{line}: must be SOURCE_{label}_... and a tag 0, 1 or 2")
            part = {"0": UNUSED, "1": "", "2": "test"}[words[1]]
            entries.append(Entry(spelled(f"{label}/{words[0]}"), label, f"{label}/{source}", part))
    require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*_test_split?.txt"))}
    return Listing(root, tuple(entries), tuple(files), every, left_out_of(walk(root), root, entries), spelled.notes())
