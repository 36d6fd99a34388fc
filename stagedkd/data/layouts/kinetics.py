"""Kinetics: class folders below each split, or the official csv lists. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stagedkd.data.index import UNUSED, Entry, Listing
from stagedkd.data.layouts.folders import lost_classes
from stagedkd.data.layouts.lists import left_out_of, require_once, with_lists
from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.tables import Row, read_columns
from stagedkd.data.layouts.walk import is_dir, missing, walk
from stagedkd.errors import DataError
from stagedkd.spec.schema import Kinetics

LISTS = r"annotations/[^/]*\.(csv|json|txt)"
LONGEST = 10**6  # seconds: the names of clips have six digits
_TIMES = re.compile(r"_\d{6}_\d{6}$")


def list_kinetics(root: Path, data: Kinetics) -> Listing:
    """List the clips of Kinetics; the official split `data.test_from` is the test split.

    Raises:
        UsageError: a folder or a list is missing. DataError: a list is wrong.
    """
    if not root.is_dir():
        raise missing(root, "folder")
    parts = {"train": "", data.test_from: "test"}
    return _from_tables(root, parts) if data.lists == "csv" else _from_folders(root, parts)


def _from_folders(root: Path, parts: Mapping[str, str]) -> Listing:
    entries: list[Entry] = []
    notes: list[str] = []
    for part, split in parts.items():
        if not (root / part).is_dir():
            raise missing(root / part, "folder", "put the class folders into train/ and val/")
        files = walk(root / part)
        found = [a for a in files.addresses if "/" in a]
        entries += [Entry(f"{part}/{a}", a.partition("/")[0], _source(_name(a)), split) for a in found]
        notes += lost_classes(root / part, 1, found, files.left_out)
    require_once(root, entries)
    left_out = with_lists(left_out_of(walk(root), root, entries), LISTS)
    return Listing(root, tuple(_without_tested(entries)), (), left_out=left_out, notes=tuple(notes))


def _without_tested(entries: Sequence[Entry]) -> list[Entry]:
    """Mark training clips `unused` whose source video is in the test split, too."""
    tested = {e.group for e in entries if e.split == "test"}
    return [replace(e, split=UNUSED) if not e.split and e.group in tested else e for e in entries]


def _name(address: str) -> str:
    """Return the name of a clip: that of its file without suffix, or that of its folder of pictures."""
    path = PurePosixPath(address)
    return path.parent.name if "{" in path.name else path.stem


def _source(stem: str) -> str:
    """Return the source video of a clip `<youtube id>_<start>_<end>`."""
    return _TIMES.sub("", stem)


def _from_tables(root: Path, parts: Mapping[str, str]) -> Listing:
    """List the clips of the official tables, in class folders or flat. `parts`: part -> split."""
    entries: list[Entry] = []
    files: dict[str, Path] = {}
    spelled = Spelling(root, any_case=False)  # ids of YouTube differ in case alone
    for part, split in parts.items():
        table = files[part] = root / "annotations" / f"{part}.csv"
        if not table.is_file():
            raise missing(table, "list", "put the official lists into annotations/train.csv and annotations/val.csv")
        for row in read_columns(table, ",", ("label", "youtube_id", "time_start", "time_end")):
            path = spelled(_path(root, part, table, row, spelled))
            entries.append(Entry(path, row.cells["label"], row.cells["youtube_id"], split))
    require_once(root / "annotations", entries)
    entries = _without_tested(sorted(entries, key=lambda e: e.path))
    left_out = with_lists(left_out_of(walk(root), root, entries), LISTS)
    return Listing(root, tuple(entries), (), files, left_out, spelled.notes())


def _path(root: Path, part: str, table: Path, row: Row, spelled: Spelling) -> str:
    """Return where downloaders put a clip, with the suffix that most of them give it."""
    try:
        start, end = (int(float(row.cells[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        start = end = -1
    if not 0 <= start <= end < LONGEST:
        raise DataError(f"{table}:{row.line}: time_start and time_end must be seconds")
    label, name = row.cells["label"], f"{row.cells['youtube_id']}_{start:06d}_{end:06d}.mp4"
    for folder in (label, label.replace(" ", "_")):
        there = spelled.folder(f"{part}/{folder}")
        if is_dir(root / there):
            return f"{there}/{name}"
    return f"{part}/{name}"
