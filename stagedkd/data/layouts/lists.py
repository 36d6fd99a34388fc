"""Tables and lists of clips: `path,label` with a header, or rows as SlowFast, VideoMAE and mmaction2 write them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stagedkd.data.address import Part, is_plain, without_part
from stagedkd.data.index import NOT_LISTED, SPLITS, Entry, Listing
from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.splits import SPLIT_NAMES
from stagedkd.data.layouts.stand_ins import without_stand_ins
from stagedkd.data.layouts.tables import Row, Table, read_table
from stagedkd.data.layouts.walk import Walk, shown, walk
from stagedkd.errors import DataError
from stagedkd.spec.schema import Csv
from stagedkd.spec.schema.videos import below

CLEAN = {"": "1", "true": "1", "false": "0", "1.0": "1", "0.0": "0"}
PROJECT = (".git", "params.yaml", "dvc.yaml")  # a project's folder also holds its store and environment


def list_csv(table: Path, root: Path, data: Csv, data_dir: Path) -> Listing:
    """List the clips of a table or of lists, one for each split.

    Args:
        root: the folder that paths are relative to. data_dir: the data root.
    Raises:
        DataError: a table is wrong; names file and line.
    """
    files = {"table": table} | {
        s: below(data_dir, p) for s, p in (("val", data.val), ("test", data.test)) if p is not None
    }
    paths = _Paths(root, data_dir, data.pictures)
    tables = {name: read_table(path, data.columns, paths.spelled) for name, path in files.items()}
    entries: list[Entry] = []
    notes = [note for read in tables.values() for note in read.notes]
    tables = {name: replace(read, rows=without_stand_ins(read, notes)) for name, read in tables.items()}
    for name, read in tables.items():
        split = name if name != "table" else "train" if data.val is not None else ""
        for row in read.rows:
            entries.append(_entry(read, row, split, paths))
    _require_apart(tables, entries)
    require_once(table, entries)
    entries.sort(key=lambda e: e.path)
    if paths.outside:
        some = f"{len(paths.outside)} clips lie outside of the data root, such as {paths.outside[0]}"
        notes.append(f"{some}: keys and stagedkd.lock hold folders of this machine")
    notes += paths.spelled.notes()
    folder = _common_folder(root, entries) if any((root / mark).exists() for mark in PROJECT) else root
    left_out = left_out_of(walk(folder, data.pictures) if folder.is_dir() else None, root, entries)
    return Listing(root, tuple(entries), (), files, left_out, tuple(notes))


def require_once(where: Path, entries: Sequence[Entry]) -> None:
    """Raise DataError if there are no clips or one is listed twice."""
    if not entries:
        raise DataError(f"{where} lists no clips")
    path, times = Counter(e.path for e in entries).most_common(1)[0]
    if times > 1:
        raise DataError(f"{where}: {path} is listed {times} times", hint="keep one of these rows")


def left_out_of(files: Walk | None, root: Path, entries: Sequence[Entry]) -> dict[str, tuple[str, ...]]:
    """Return why files were left out, with the clips on the disk that no list names. Paths are relative to `root`. No
    walk: the folder of the videos does not exist."""
    if files is None:
        return {}
    base = files.root
    named = {without_part(e.path)[0] for e in entries}

    def relative(path: str) -> str:
        return Path(os.path.relpath(base / path, root)).as_posix()

    left_out = {reason: tuple(relative(p) for p in paths) for reason, paths in files.left_out.items()}
    unlisted = [path for path in map(relative, files.videos) if path not in named]
    for run in files.pictures:
        if relative(run.address) not in named:
            unlisted += [relative(name) for name in run.names]
    return left_out | ({NOT_LISTED: tuple(sorted(unlisted))} if unlisted else {})


def _common_folder(root: Path, entries: Sequence[Entry]) -> Path:
    """Return the deepest folder that holds all clips, or `root` if there is none below it."""
    inside = [str(PurePosixPath(without_part(e.path)[0]).parent) for e in entries if not e.path.startswith(("/", ".."))]
    below = root / os.path.commonpath(inside) if inside else root
    while not below.is_dir() and below != root:
        below = below.parent
    return below


def _require_apart(tables: Mapping[str, Table], entries: Sequence[Entry]) -> None:
    """Raise DataError if the list of one split holds all clips of another."""
    paths = {name: {e.path for e in entries if e.split == name} for name in tables if name != "table"}
    if len(paths) == 2 and paths["test"] and paths["test"] == paths["val"]:
        hint = "leave out data.test; results are then those of the validation split"
        raise DataError(f"{tables['test'].path} lists the same clips as {tables['val'].path}", hint=hint)


@dataclass
class _Paths:
    """Turns the paths of tables into paths relative to the root; remembers those that cannot be."""

    root: Path
    data_dir: Path
    pattern: str | None

    def __post_init__(self) -> None:
        self.outside: list[str] = []
        self.spelled = Spelling(self.root)

    def relative(self, written: str) -> str:
        """Return a path as it is kept: relative to the root if it lies below the root or the data root."""
        path = written if not _is_windows(written, self.root) else written.replace("\\", "/")
        if not path.startswith("/"):
            if re.match(r"[A-Za-z]:/", path):
                self.outside.append(path)
            return os.path.normpath(path)
        # A data root, or a path into it, may lead through links.
        for place in (Path(path), Path(path).resolve()):
            for folder in (self.root, self.root.resolve()):
                if place.is_relative_to(folder):
                    return place.relative_to(folder).as_posix()
            for folder in (self.data_dir, self.data_dir.resolve()):
                if place.is_relative_to(folder):
                    there = self.data_dir.resolve() / place.relative_to(folder)
                    return Path(os.path.relpath(there, self.root.resolve())).as_posix()
        self.outside.append(path)
        return os.path.normpath(path)

    def address(self, path: str) -> tuple[str, int | None]:
        """Return the address of a clip; and if the path is a folder, the number of its pictures, else None."""
        folder = self.root / path
        if not folder.is_dir():
            return self.spelled(path), None
        runs = [run for run in walk(folder, self.pattern).pictures if "/" not in run.address]
        if len(runs) != 1:
            raise DataError(f"{shown(path)} is a folder without numbered pictures")
        return f"{path}/{runs[0].address}", len(runs[0].names)


def _is_windows(path: str, root: Path) -> bool:
    """Return whether a path was written with backslashes between its folders."""
    return "\\" in path and not (root / path).exists()


def _entry(table: Table, row: Row, split: str, paths: _Paths) -> Entry:
    """Turn a row of a table into a clip."""
    cells, where = row.cells, f"{table.path}:{row.line}"
    path, clean = cells.get("path", ""), CLEAN.get(cells.get("clean", "").lower(), cells.get("clean", ""))
    if not path:
        raise DataError(f"{where}: the path is missing")
    told = cells.get("split", "").lower() or split
    told = SPLIT_NAMES.get(told, told)
    if told not in ("", *SPLITS):
        raise DataError(f"{where}: split must be train, val or test, not '{told}'")
    if split and told != split:
        raise DataError(f"{where}: the row is of split {told}, but the list of split {split}")
    if clean not in ("0", "1"):
        raise DataError(f"{where}: clean must be 0 or 1, not '{clean}'")
    label = cells.get("label", "")
    if told in ("val", "test") and not label:
        raise DataError(f"{where}: a {told} clip needs a label")
    kept = paths.relative(path)
    if not is_plain(kept):
        raise DataError(f"{where}: '{path}' has a meaning of its own", hint="give parts in the columns start and end")
    try:
        address, pictures = paths.address(kept)
        address += _part(cells, pictures)
    except (DataError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None
    return Entry(address, label, cells.get("group") or kept, told, clean == "1")


def _part(cells: Mapping[str, str], pictures: int | None) -> str:
    """Return the part of a clip that a row asks for, as the end of an address. `pictures`: see `_Paths.address`.

    Raises:
        ValueError: the numbers are wrong; says how.
    """
    start, end = cells.get("start", ""), cells.get("end", "")
    if start or end:
        if pictures is not None:
            raise ValueError("pictures have no clock: name the part by offset and frames")
        first, last = _number(start or "0", "start"), _number(end, "end")
        if last <= first:
            raise ValueError(f"end {end} must be after start {start or 0}")
        return str(Part("seconds", first, last))
    offset, frames = cells.get("offset", ""), cells.get("frames", "")
    if pictures is None and not offset:
        return ""  # the number of frames of a video is found by decoding it
    if not frames:
        if offset:
            raise ValueError("an offset needs the number of frames")
        return ""
    first, count = int(_number(offset or "0", "offset")), int(_number(frames, "frames"))
    if count < 1:
        raise ValueError(f"frames must be 1 or more, not {frames}")
    return "" if first == 0 and count == pictures else str(Part("frames", first, first + count))


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what} must be a number, not '{text}'") from None
    if not 0 <= value < 1e7:
        raise ValueError(f"{what} must be 0 or more, not {text}")
    return value
