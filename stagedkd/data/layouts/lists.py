"""Tables and lists of clips: `path,label` with a header, or rows as SlowFast, VideoMAE and mmaction2 write them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path, PurePosixPath

from stagedkd.data.address import Address, Part, is_plain, without_part
from stagedkd.data.index import A_LIST, NOT_LISTED, SPLITS, Entry, Listing
from stagedkd.data.layouts.modalities import FLOW, OTHER
from stagedkd.data.layouts.paths import Paths
from stagedkd.data.layouts.splits import SPLIT_NAMES
from stagedkd.data.layouts.stand_ins import without_stand_ins
from stagedkd.data.layouts.tables import Row, Table, read_table
from stagedkd.data.layouts.walk import Walk, walk
from stagedkd.errors import DataError
from stagedkd.spec.schema import Csv
from stagedkd.spec.schema.videos import below

CLEAN = {"": "1", "true": "1", "false": "0", "1.0": "1", "0.0": "0"}
MOST_PAIRED = 200  # parts of one video that are compared each with each; of more, neighbours in time
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
    paths = Paths(root, data_dir, data.pictures)
    tables = {name: read_table(path, data.columns, paths.spelled) for name, path in files.items()}
    entries: list[Entry] = []
    notes = [note for read in tables.values() for note in read.notes]
    tables = without_stand_ins(tables, notes)
    for name, read in tables.items():
        split = name if name != "table" else "train" if data.val is not None else ""
        for row in read.rows:
            entries.append(_entry(read, row, split, paths))
    _require_apart(tables, entries)
    require_once(table, entries)
    notes += _overlaps(entries)
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

    folders = {path.rpartition("/")[0] for path in named if not is_plain(path)}  # a list may name flow or depth
    left_out: dict[str, tuple[str, ...]] = {}
    for reason, paths in files.left_out.items():
        every = map(relative, paths)
        rest = [
            p for p in every if p not in named and not (reason in (FLOW, OTHER) and p.rpartition("/")[0] in folders)
        ]
        left_out |= {reason: tuple(rest)} if rest else {}
    unlisted = [path for path in map(relative, files.videos) if path not in named]
    for run in files.pictures:
        if relative(run.address) not in named:
            unlisted += [relative(name) for name in run.names]
    return left_out | ({NOT_LISTED: tuple(sorted(unlisted))} if unlisted else {})


def with_lists(left_out: Mapping[str, tuple[str, ...]], form: str) -> dict[str, tuple[str, ...]]:
    """Return what was left out, with official lists that are not used as lists. form: a pattern of their paths."""
    rest = {reason: tuple(p for p in paths if not re.fullmatch(form, p)) for reason, paths in left_out.items()}
    lists = tuple(sorted(p for paths in left_out.values() for p in paths if re.fullmatch(form, p)))
    return {reason: paths for reason, paths in rest.items() if paths} | ({A_LIST: lists} if lists else {})


def _common_folder(root: Path, entries: Sequence[Entry]) -> Path:
    """Return the deepest folder that holds all clips, or `root` if there is none below it."""
    inside = [str(PurePosixPath(without_part(e.path)[0]).parent) for e in entries if not e.path.startswith(("/", ".."))]
    below = root / os.path.commonpath(inside) if inside else root
    while not below.is_dir() and below != root:
        below = below.parent
    return below


def _overlaps(entries: Sequence[Entry]) -> list[str]:
    """Return a note if parts of one video overlap and are in different groups, which may be in different splits."""
    parts: dict[str, list[tuple[Part | None, Entry]]] = defaultdict(list)
    for entry in entries:
        address = Address.read(Path(), entry.path)
        parts[address.file.as_posix()].append((address.part, entry))
    torn: list[tuple[str, str]] = []
    for rows in parts.values():
        if len({entry.group for _, entry in rows}) > 1:
            pairs = combinations(rows, 2) if len(rows) <= MOST_PAIRED else pairwise(sorted(rows, key=_begin))
            torn += [(a.path, b.path) for (one, a), (two, b) in pairs if a.group != b.group and _may_overlap(one, two)]
    if not torn:
        return []
    (first, second), which = min(torn), "pair" if len(torn) == 1 else "pairs"
    return [f"{len(torn)} {which} of clips show the same frames in different groups, such as {first} and {second}"]


def _begin(row: tuple[Part | None, Entry]) -> float:
    return row[0].start if row[0] else 0.0


def _may_overlap(one: Part | None, two: Part | None) -> bool:
    """Return whether two parts of a video may share frames; those in seconds and in frames are not compared."""
    if one is None or two is None or one.unit != two.unit:
        return True
    return one.start < two.end and two.start < one.end


def _require_apart(tables: Mapping[str, Table], entries: Sequence[Entry]) -> None:
    """Raise DataError if the list of one split holds all clips of another."""
    paths = {name: {e.path for e in entries if e.split == name} for name in tables if name != "table"}
    if len(paths) == 2 and paths["test"] and paths["test"] == paths["val"]:
        hint = "leave out data.test; results are then those of the validation split"
        raise DataError(f"{tables['test'].path} lists the same clips as {tables['val'].path}", hint=hint)


def _entry(table: Table, row: Row, split: str, paths: Paths) -> Entry:
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
    try:
        kept = paths.relative(path)
        if not is_plain(kept):
            raise DataError(f"'{path}' has a meaning of its own", hint="give parts in the columns start and end")
        address, pictures = paths.address(kept)
        address += _part(cells, pictures)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from None
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    return Entry(address, label, cells.get("group") or _file_of(address), told, clean == "1")


def _file_of(address: str) -> str:
    """Return the video or the folder of pictures of an address: the group of a row that states none."""
    path = without_part(address)[0]
    return path if is_plain(path) else path.rpartition("/")[0]


def _part(cells: Mapping[str, str], pictures: int | None) -> str:
    """Return the part of a clip that a row asks for, as the end of an address. `pictures`: see `Paths.address`.

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
    first, count = _whole(offset or "0", "offset"), _whole(frames, "frames")
    if count < 1:
        raise ValueError(f"frames must be 1 or more, not {frames}")
    return "" if first == 0 and count == pictures else str(Part("frames", first, first + count))


def _whole(text: str, what: str) -> int:
    value = _number(text, what)
    if value != int(value):
        raise ValueError(f"{what} must be a whole number, not {text}")
    return int(value)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what} must be a number, not '{text}'") from None
    if not 0 <= value < 1e7:
        raise ValueError(f"{what} must be 0 or more, not {text}")
    return value
