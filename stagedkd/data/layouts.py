"""Readers of the usual layouts of video data sets: class folders, tables, UCF101, HMDB51, Kinetics. Torch-free.

Each reader lists the clips with class and group. The test clips of an official list have the split `test`; its training
clips have none yet, since validation clips are drawn from them.
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
    """List the clips of a data set on the disk.

    Raises:
        UsageError: the folder, the table or a list is missing. DataError: a list is wrong; names file and line.
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


def _missing(path: Path, what: str, hint: str = "") -> UsageError:
    """Return the error for a folder, table or list that does not exist."""
    return UsageError(
        f"the {what} {path} does not exist",
        hint=hint or "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml",
    )


def _videos(folder: Path) -> Iterator[Path]:
    """Yield the video files below a folder, sorted."""
    return (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())


def _unlisted(root: Path, below: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the videos below a folder that no list names."""
    named = {e.path for e in entries}
    paths = (p.relative_to(root).as_posix() for p in (_videos(below) if below.is_dir() else ()))
    return tuple(path for path in paths if path not in named)


# ---------------------------------------------------------------- class folders and tables


def _list_folder(root: Path) -> Listing:
    if not root.is_dir():
        raise _missing(root, "folder")
    entries = [
        Entry(path.relative_to(root).as_posix(), folder.name, path.relative_to(root).as_posix())
        for folder in sorted(p for p in root.iterdir() if p.is_dir())
        for path in _videos(folder)
    ]
    if not entries:
        raise DataError(
            f"no videos below {root}", hint="put the videos of each class into a folder of its name: CLASS/CLIP.mp4"
        )
    return Listing(root, tuple(entries), classes_of(entries))


def _list_csv(table: Path) -> Listing:
    if not table.is_file():
        raise _missing(table, "table")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            unknown = columns - {"path", "label", "group", "split", "clean"}
            if unknown or not {"path", "label"} <= columns:
                what = f"unknown column '{min(unknown)}'" if unknown else "columns path and label are needed"
                raise DataError(f"{table}:1: {what}", hint="the columns are path,label[,group][,split][,clean]")
            entries = [_row(table, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table in UTF-8: {error}") from None
    _require_once(table, entries)
    entries.sort(key=lambda e: e.path)
    return Listing(table.parent, tuple(entries), classes_of(entries), {"table": table})


def _require_once(where: Path, entries: Sequence[Entry]) -> None:
    """Raise DataError if there are no clips or one is listed twice."""
    if not entries:
        raise DataError(f"{where} lists no clips")
    path, times = Counter(e.path for e in entries).most_common(1)[0]
    if times > 1:
        raise DataError(f"{where}: {path} is listed {times} times")


def _row(table: Path, line: int, row: dict[str, str | None]) -> Entry:
    """Turn a row of a table into a clip."""
    path, split, clean = (row.get("path") or "").strip(), row.get("split") or "", row.get("clean") or "1"
    if not path:
        raise DataError(f"{table}:{line}: the path is missing")
    if split not in ("", *SPLITS):
        raise DataError(f"{table}:{line}: split must be train, val or test, not '{split}'")
    if clean not in ("0", "1"):
        raise DataError(f"{table}:{line}: clean must be 0 or 1, not '{clean}'")
    label = (row.get("label") or "").strip()
    if split in ("val", "test") and not label:
        raise DataError(f"{table}:{line}: a {split} clip needs a label")
    return Entry(path, label, (row.get("group") or "").strip() or path, split, clean == "1")


# ---------------------------------------------------------------- UCF101


def _list_ucf101(root: Path, split: int) -> Listing:
    lists, videos = root / UCF_LISTS, root / UCF_VIDEOS
    files = {name: lists / f"{name}.txt" for name in ("classInd", f"trainlist0{split}", f"testlist0{split}")}
    layout = f"unpack the official archives to {root.name}/{UCF_VIDEOS} and {root.name}/{UCF_LISTS}"
    for path in files.values():
        if not path.is_file():
            raise _missing(path, "list", f"{layout}, below --data-dir, STAGEDKD_DATA or runtime.data_dir")
    classes = tuple(name for _, name in _numbered(files["classInd"]))
    spelled = _Spelling(videos)
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
    _require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*.txt"))}  # of all splits: they share an entry of the lock
    return Listing(root, tuple(entries), classes, every, _unlisted(root, videos, entries))


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Read rows `1 Name`, sorted by their numbers."""
    rows: list[tuple[int, str]] = []
    for line, words in _lines(path):
        if len(words) != 2 or not words[0].isdigit():
            raise DataError(f"{path}:{line}: must be a number and a class")
        rows.append((int(words[0]), words[1]))
    return sorted(rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line that is not empty as its number and its words; CRLF is accepted."""
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, line.split()


class _Spelling:
    """Finds the file on the disk of a path in a list, whose case may differ: UCF101's folder HandstandPushups holds
    files v_HandStandPushups_*, and many copies differ from the lists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, Mapping[str, str]] = {}

    def __call__(self, listed: str) -> str:
        folder, _, name = listed.rpartition("/")
        if folder not in self.folders:
            path = self.root / folder
            names = [p.name for p in path.iterdir()] if path.is_dir() else []
            self.folders[folder] = {n.lower(): n for n in names} | {n: n for n in names}
        known = self.folders[folder]
        return f"{folder}/{known.get(name) or known.get(name.lower()) or name}"


# ---------------------------------------------------------------- HMDB51


def _list_hmdb51(root: Path, split: int) -> Listing:
    lists = root / HMDB_LISTS
    ending = f"_test_split{split}.txt"
    files = {p.name.removesuffix(ending): p for p in sorted(lists.glob(f"*{ending}"))}
    if not files:
        hint = f"unpack the official archives to {root.name}/{HMDB_LISTS} and {root.name}/<class>, below the data root"
        raise _missing(lists / f"<class>{ending}", "list", hint)
    entries: list[Entry] = []
    for label, path in files.items():
        for line, words in _lines(path):
            source = words[0].partition(f"_{label}_")[0]
            if len(words) != 2 or words[1] not in ("0", "1", "2") or source == words[0]:
                raise DataError(f"{path}:{line}: must be SOURCE_{label}_... and a tag 0, 1 or 2")
            part = {"0": UNUSED, "1": "", "2": "test"}[words[1]]
            entries.append(Entry(f"{label}/{words[0]}", label, f"{label}/{source}", part))
    _require_once(lists, entries)
    entries.sort(key=lambda e: e.path)
    every = {p.name: p for p in sorted(lists.glob("*_test_split?.txt"))}
    return Listing(root, tuple(entries), tuple(files), every, _unlisted(root, root, entries))


# ---------------------------------------------------------------- Kinetics


def _list_kinetics(root: Path, data: Kinetics) -> Listing:
    if not root.is_dir():
        raise _missing(root, "folder")
    parts = {"train": "", data.test_from: "test"}
    if data.lists == "csv":
        return _kinetics_tables(root, parts)
    entries: list[Entry] = []
    for part, split in parts.items():
        if not (root / part).is_dir():
            raise _missing(root / part, "folder", "put the class folders into train/ and val/")
        for folder in sorted(p for p in (root / part).iterdir() if p.is_dir()):
            for path in _videos(folder):
                entries.append(Entry(path.relative_to(root).as_posix(), folder.name, _source(path.stem), split))
    _require_once(root, entries)
    entries = _without_tested(entries)
    return Listing(root, tuple(entries), classes_of(entries))


def _without_tested(entries: Sequence[Entry]) -> list[Entry]:
    """Mark training clips `unused` whose source video is in the test split, too."""
    tested = {e.group for e in entries if e.split == "test"}
    return [replace(e, split=UNUSED) if not e.split and e.group in tested else e for e in entries]


def _source(stem: str) -> str:
    """Return the source video of a clip `<youtube id>_<start>_<end>`."""
    return _TIMES.sub("", stem)


def _kinetics_tables(root: Path, parts: Mapping[str, str]) -> Listing:
    """List the clips of the official tables, in class folders or flat. `parts`: part -> split."""
    entries: list[Entry] = []
    files: dict[str, Path] = {}
    for part, split in parts.items():
        table = files[part] = root / "annotations" / f"{part}.csv"
        if not table.is_file():
            raise _missing(table, "list", "put the official lists into annotations/train.csv and annotations/val.csv")
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            needed = {"label", "youtube_id", "time_start", "time_end"}
            if not needed <= set(reader.fieldnames or ()):
                raise DataError(f"{table}:1: columns {', '.join(sorted(needed))} are needed")
            for row in reader:
                try:
                    times = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
                except (TypeError, ValueError):
                    raise DataError(f"{table}:{reader.line_num}: time_start and time_end must be seconds") from None
                name, label = f"{row['youtube_id']}_{times}.mp4", row["label"]
                inside = f"{part}/{label}/{name}"
                path = inside if (root / part / label).is_dir() else f"{part}/{name}"
                entries.append(Entry(path, label, row["youtube_id"], split))
    _require_once(root / "annotations", entries)
    entries = _without_tested(sorted(entries, key=lambda e: e.path))
    return Listing(root, tuple(entries), classes_of(entries), files, _unlisted(root, root, entries))
