"""The layouts in which people keep videos: class folders, tables, UCF101, HMDB51, Kinetics. Torch-free.

Each reader gives the clips with class and group, and with a split where an official list has one: its test clips say
`test`, its training clips nothing yet, since validation is carved from them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from stagedkd.data.index import SPLITS, UNUSED, Entry, Listing, classes_of
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Folder, Hmdb51, Kinetics, Ucf101, Videos

VIDEO_SUFFIXES = frozenset(
    [".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".ts", ".3gp"]
)
UCF_VIDEOS, UCF_LISTS = "UCF-101", "ucfTrainTestlist"
HMDB_LISTS = "testTrainMulti_7030_splits"
_GROUP = re.compile(r"_(g\d+)_c\d+$")
_TIMES = re.compile(r"_\d{6}_\d{6}$")


def list_clips(data: Videos, data_dir: Path) -> Listing:
    """The clips of a data set on the disk.

    Raises:
        UsageError: the folder, table or a list is missing. DataError: a list is wrong, with file and line.
    """
    match data:
        case Folder():
            return _list_folder(data_dir / data.path)
        case Csv():
            return _list_csv(data_dir / data.path)
        case Ucf101():
            return _list_ucf101(data_dir / data.path, data.split)
        case Hmdb51():
            return _list_hmdb51(data_dir / data.path, data.split)
        case Kinetics():
            return _list_kinetics(data_dir / data.path, data)
        case _:
            assert_never(data)


def missing(path: Path, what: str, hint: str = "") -> UsageError:
    """The error for data that are not where they are looked for."""
    return UsageError(
        f"no {what} {path}", hint=hint or "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml"
    )


def _videos(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())


def _unlisted(root: Path, below: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Videos that no list names."""
    named = {e.path for e in entries}
    found = (p.relative_to(root).as_posix() for p in (_videos(below) if below.is_dir() else ()))
    return tuple(path for path in found if path not in named)


# ---------------------------------------------------------------- class folders and tables


def _list_folder(root: Path) -> Listing:
    if not root.is_dir():
        raise missing(root, "folder")
    entries = [
        Entry(path.relative_to(root).as_posix(), folder.name, path.relative_to(root).as_posix())
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        for path in _videos(folder)
    ]
    if not entries:
        raise DataError(f"no videos below {root}", hint="one folder a class, videos inside: CLASS/CLIP.mp4")
    return Listing(root, tuple(entries), classes_of(entries))


def _list_csv(table: Path) -> Listing:
    if not table.is_file():
        raise missing(table, "table")
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
    _require_once(table, entries)
    entries.sort(key=lambda e: e.path)
    return Listing(table.parent, tuple(entries), classes_of(entries), {"table": table})


def _require_once(where: Path, entries: Sequence[Entry]) -> None:
    if not entries:
        raise DataError(f"{where} lists no clips")
    path, times = Counter(e.path for e in entries).most_common(1)[0]
    if times > 1:
        raise DataError(f"{where}: {path} stands {times} times")


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


# ---------------------------------------------------------------- UCF101


def _list_ucf101(root: Path, split: int) -> Listing:
    lists, videos = root / UCF_LISTS, root / UCF_VIDEOS
    files = {name: lists / f"{name}.txt" for name in ("classInd", f"trainlist0{split}", f"testlist0{split}")}
    layout = f"the official archives give {root.name}/{UCF_VIDEOS} and {root.name}/{UCF_LISTS}"
    for path in files.values():
        if not path.is_file():
            raise missing(path, "list", f"{layout}, below --data-dir, STAGEDKD_DATA or runtime.data_dir")
    classes = tuple(name for _, name in _numbered(files["classInd"]))
    spelled = _Spelling(videos)
    entries: list[Entry] = []
    for name, part in ((f"trainlist0{split}", ""), (f"testlist0{split}", "test")):
        for line, words in _lines(files[name]):
            folder, _, stem = words[0].removesuffix(".avi").rpartition("/")
            group = _GROUP.search(stem)
            if folder not in classes or group is None:
                raise DataError(f"{files[name]}:{line}: '{words[0]}' is no CLASS/v_CLASS_gNN_cNN.avi of classInd.txt")
            path = f"{UCF_VIDEOS}/{spelled(words[0])}"
            entries.append(Entry(path, folder, f"{folder}/{group[1]}", part))
    _require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*.txt"))}  # those of all splits: one entry of the lock is for all
    return Listing(root, tuple(entries), classes, every, _unlisted(root, videos, entries))


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Rows `1 Name` in the order of their numbers."""
    rows: list[tuple[int, str]] = []
    for line, words in _lines(path):
        if len(words) != 2 or not words[0].isdigit():
            raise DataError(f"{path}:{line}: expected a number and a class")
        rows.append((int(words[0]), words[1]))
    return sorted(rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbered lines as words; CRLF and empty lines are nothing special."""
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, line.split()


class _Spelling:
    """The name on the disk of a path in a list: UCF101's own folder HandstandPushups holds v_HandStandPushups_*, and
    copies differ from the lists in case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, Mapping[str, str]] = {}

    def __call__(self, listed: str) -> str:
        folder, _, name = listed.rpartition("/")
        if folder not in self.folders:
            there = self.root / folder
            names = [p.name for p in there.iterdir()] if there.is_dir() else []
            self.folders[folder] = {n.lower(): n for n in names} | {n: n for n in names}
        known = self.folders[folder]
        return f"{folder}/{known.get(name) or known.get(name.lower()) or name}"


# ---------------------------------------------------------------- HMDB51


def _list_hmdb51(root: Path, split: int) -> Listing:
    lists = root / HMDB_LISTS
    ending = f"_test_split{split}.txt"
    files = {p.name.removesuffix(ending): p for p in sorted(lists.glob(f"*{ending}"))}
    if not files:
        hint = f"the official archives give {root.name}/{HMDB_LISTS} and {root.name}/<class>, below the data root"
        raise missing(lists / f"<class>{ending}", "lists", hint)
    entries: list[Entry] = []
    for label, path in files.items():
        for line, words in _lines(path):
            source = words[0].partition(f"_{label}_")[0]
            if len(words) != 2 or words[1] not in ("0", "1", "2") or source == words[0]:
                raise DataError(f"{path}:{line}: expected SOURCE_{label}_..., and a tag 0, 1 or 2")
            part = {"0": UNUSED, "1": "", "2": "test"}[words[1]]
            entries.append(Entry(f"{label}/{words[0]}", label, f"{label}/{source}", part))
    _require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*_test_split?.txt"))}
    return Listing(root, tuple(entries), tuple(files), every, _unlisted(root, root, entries))


# ---------------------------------------------------------------- Kinetics


def _list_kinetics(root: Path, data: Kinetics) -> Listing:
    if not root.is_dir():
        raise missing(root, "folder")
    parts = {"train": "", data.test_from: "test"}
    if data.lists == "csv":
        return _kinetics_tables(root, parts)
    entries: list[Entry] = []
    for part, split in parts.items():
        if not (root / part).is_dir():
            raise missing(root / part, "folder", "class folders lie below train/ and val/")
        for folder in sorted(p for p in (root / part).iterdir() if p.is_dir()):
            for path in _videos(folder):
                entries.append(Entry(path.relative_to(root).as_posix(), folder.name, _source(path.stem), split))
    _require_once(root, entries)
    entries = _apart(entries)
    return Listing(root, tuple(entries), classes_of(entries))


def _apart(entries: Sequence[Entry]) -> list[Entry]:
    """Training clips whose source video is in the test split, too, are left out."""
    tested = {e.group for e in entries if e.split == "test"}
    return [replace(e, split=UNUSED) if not e.split and e.group in tested else e for e in entries]


def _source(stem: str) -> str:
    """The source video of a clip `<youtube id>_<start>_<end>`."""
    return _TIMES.sub("", stem)


def _kinetics_tables(root: Path, parts: Mapping[str, str]) -> Listing:
    entries: list[Entry] = []
    files: dict[str, Path] = {}
    for part, split in parts.items():
        table = files[part] = root / "annotations" / f"{part}.csv"
        if not table.is_file():
            raise missing(table, "list", "the official lists are annotations/train.csv and annotations/val.csv")
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            wanted = {"label", "youtube_id", "time_start", "time_end"}
            if not wanted <= set(reader.fieldnames or ()):
                raise DataError(f"{table}:1: columns {', '.join(sorted(wanted))} are needed")
            for row in reader:
                try:
                    times = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
                except (TypeError, ValueError):
                    raise DataError(f"{table}:{reader.line_num}: time_start and time_end are seconds") from None
                name, label = f"{row['youtube_id']}_{times}.mp4", row["label"]
                inside = f"{part}/{label}/{name}"
                path = inside if (root / part / label).is_dir() else f"{part}/{name}"
                entries.append(Entry(path, label, row["youtube_id"], split))
    _require_once(root / "annotations", entries)
    entries = _apart(sorted(entries, key=lambda e: e.path))
    return Listing(root, tuple(entries), classes_of(entries), files, _unlisted(root, root, entries))
