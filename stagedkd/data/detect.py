"""Tell which layout videos lie in: `stagedkd init` writes the section `data` for it. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stagedkd.data.layouts.class_files import read_classes
from stagedkd.data.layouts.classes import clean_name, is_number
from stagedkd.data.layouts.folders import list_folder
from stagedkd.data.layouts.official import HMDB_LISTS, UCF_LISTS
from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.splits import SPLIT_NAMES
from stagedkd.data.layouts.stand_ins import without_stand_ins
from stagedkd.data.layouts.tables import ALSO, Table, read_table
from stagedkd.data.layouts.twentybn import JESTER, SSV2
from stagedkd.data.layouts.walk import VIDEO_SUFFIXES, exists
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Folder, Hmdb51, Jester, Kinetics, Ssv2, Ucf101, Videos

HINT = "name a folder with a folder of videos for each class, or a table or list of videos"
TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".txt", ".list", ".lst"])
_CLASS_FILE = re.compile(
    r"(classInd|class(es|_?names?)?|labels?|label_map\w*|\w*_classes)\.(txt|csv|json)", re.IGNORECASE
)
Written = Callable[[Path], str]


def detect(videos: Path, written: Written) -> tuple[Videos, list[str]]:
    """Return the section `data` for a folder, a table or a list, and notes on what was found.

    Args:
        written: returns a path as the spec writes it.
    Raises:
        UsageError: there is no such folder or file, or it is a video.
    """
    if not exists(videos):
        raise UsageError(f"{videos} is not a folder or a file: it does not exist", hint=HINT)
    if videos.is_file():
        if videos.suffix.lower() in VIDEO_SUFFIXES:
            raise UsageError(f"{videos} is one video", hint=HINT)
        lists = _split_lists(videos.parent)
        return _from_lists(lists if lists.get("train") == videos else {"train": videos}, written)
    if official := _official(videos, written(videos)):
        return official, [f"read {videos} as the official layout of {official.kind}"]
    unread: list[str] = []
    for lists in _candidates(videos):
        try:
            data, notes = _from_lists(lists, written)
        except DataError as error:
            unread.append(f"note: {lists['train']} is not used: {error.message}")
            continue
        return data, [f"read the table {lists['train']}", *notes] if len(lists) == 1 else notes
    classes, told = _class_file(videos, _class_folders(videos))
    data = Folder(kind="folder", path=written(videos), classes=written(classes) if classes else None)
    return data, [*dict.fromkeys(unread), *told]


def _candidates(videos: Path) -> Iterator[dict[str, Path]]:
    """Yield what may be tables or lists of the videos in a folder, the most likely first."""
    for folder in (videos, *(videos / name for name in ("annotations", "lists", "labels", "splits"))):
        lists = _split_lists(folder)
        if "train" in lists:
            yield lists
    files = _files(videos)
    headed = [path for path in files if _has_header(path)]
    bare = [path for path in files if path not in headed and not _CLASS_FILE.fullmatch(path.name)]
    yield from ({"train": path} for path in headed)
    yield from ({"train": path} for path in bare if len(bare) == 1)


def _class_folders(videos: Path) -> set[str]:
    """Return the names of the class folders, also of those above or below split folders."""
    try:
        listing = list_folder(videos, Folder(kind="folder"))
    except DataError:
        return set()  # whoever lists the clips says why
    return {clean_name(entry.label) for entry in listing.entries}


def _class_file(folder: Path, names: set[str]) -> tuple[Path | None, list[str]]:
    """Return a list of exactly these classes in a folder, or None; and notes on what was read or not."""
    notes: list[str] = []
    for path in _class_files(folder):
        try:
            listed = set(read_classes(path).names)
        except DataError as error:
            notes.append(f"note: {path} is not used: {error.message}")
            continue
        if listed == names:
            return path, [f"read the classes {path}"]
        odd = sorted(listed ^ names)
        where = "no folder has its class" if odd and odd[0] in listed else "it does not name the folder"
        notes.append(f"note: {path} is not used: {where} '{odd[0]}'")
    return None, notes if names else []


def _class_files(folder: Path) -> list[Path]:
    """Return what may be lists of classes in a folder, sorted; tables of clips are none."""
    named = sorted(p for p in folder.iterdir() if _CLASS_FILE.fullmatch(p.name) and p.is_file())
    return [path for path in named if not _has_header(path)]


def _official(folder: Path, path: str) -> Videos | None:
    """Return the section of an official layout, told by its lists."""
    if (folder / UCF_LISTS).is_dir():
        return Ucf101(kind="ucf101", path=path)
    if (folder / HMDB_LISTS).is_dir():
        return Hmdb51(kind="hmdb51", path=path)
    if (folder / f"20bn-{SSV2}").is_dir():
        return Ssv2(kind="ssv2", path=path)
    if (folder / f"20bn-{JESTER}").is_dir():
        return Jester(kind="jester", path=path)
    lists = folder / "annotations" / "train.csv"
    if lists.is_file() and "youtube_id" in _first_line(lists):
        return Kinetics(kind="kinetics", path=path, lists="csv")
    return None


def _files(folder: Path) -> list[Path]:
    """Return the tables and texts directly in a folder, sorted."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in there if p.suffix.lower() in TABLE_SUFFIXES and p.is_file() and not p.name.startswith(".")]


def _first_line(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.readline(10_000).decode("utf-8-sig", "replace").lower()


def _has_header(path: Path) -> bool:
    """Return whether a file is a table with a header of ours."""
    names = [name.strip().strip('"\n\r') for name in re.split(r"[,;\t]", _first_line(path))]
    return {"path", "label"} <= {ALSO.get(name, name) for name in names}


def _split_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of a folder by split: those whose names hold the name of one split, such as train.csv. If there
    are several for a split, none is taken for it."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        words = re.split(r"[^a-z]+", path.stem.lower())
        splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(splits) == 1 and not _CLASS_FILE.fullmatch(path.name):
            found.setdefault(splits.pop(), []).append(path)
    return {split: paths[0] for split, paths in found.items() if len(paths) == 1}


def _from_lists(lists: Mapping[str, Path], written: Written) -> tuple[Csv, list[str]]:
    """Return the section for a table, or for one list a split."""
    table = lists["train"]
    root, notes = _root(table)
    rows = {split: read_table(path, None, Spelling(root)) for split, path in lists.items()}
    if not any(Spelling(root).exists(path) for path in _paths(rows["train"])):
        raise DataError(f"none of its clips is found, such as {min(_paths(rows['train']))}", hint=HINT)
    taken = dict(lists)
    if "test" in rows and "val" in rows and _paths(rows["test"]) == _paths(rows["val"]):
        notes.append(f"{taken.pop('test')} lists the clips of {lists['val']}: there is no test split")
    if len(taken) > 1:
        notes.append("read the lists " + ", ".join(str(path) for path in taken.values()))
    read = without_stand_ins(rows, [])
    classes, told = _classes(table, [row.cells["label"] for one in read.values() for row in one.rows])
    notes += told
    return (
        Csv(
            kind="csv",
            path=written(table),
            val=written(taken["val"]) if "val" in taken else None,
            test=written(taken["test"]) if "test" in taken else None,
            videos=None if root == table.parent else written(root),
            classes=None if classes is None else written(classes),
        ),
        notes,
    )


def _root(table: Path) -> tuple[Path, list[str]]:
    """Return the folder that the paths of a table are relative to: that of the table if a clip is there; else the one
    above or below it, or the working folder, below which most of them are. A note says what may be meant otherwise.

    Raises:
        DataError: below none of them the table can be read.
    """
    folder = table.parent
    near = [p for above in (folder, folder.parent) for p in sorted(above.iterdir()) if p.is_dir()]
    counts: dict[Path, int] = {}
    failed: DataError | None = None
    for root in dict.fromkeys((folder, folder.parent, Path(), *near)):
        spelled = Spelling(root)
        try:
            rows = read_table(table, None, spelled).rows
        except DataError as error:
            failed = error if failed is None else failed
            continue
        step = 1 if root == folder else max(1, len(rows) // 50)
        counts[root] = sum(spelled.exists(row.cells["path"]) for row in rows[::step]) * step
    if not counts:
        assert failed is not None
        raise failed
    best = folder if counts.get(folder) else max(counts, key=lambda root: counts[root])
    if best == folder:
        more = [root for root, count in counts.items() if count > counts.get(folder, 0)]
        what = f"{table} lists more clips of {more[0]} than of its own folder; data.videos can name it" if more else ""
        return folder, [f"note: {what}"] if what else []
    notes = [f"the paths of {table} are taken as relative to {best}"] if counts[best] else []
    also = [root for root, count in counts.items() if count == counts[best] and not _same(root, best)]
    return best, notes + [f"note: its clips are in {root}, too; data.videos can name it" for root in also if notes]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _paths(table: Table) -> set[str]:
    return {row.cells["path"] for row in table.rows}


def _classes(table: Path, labels: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the list of classes beside a table whose labels are numbers, if it has one name for each; and notes."""
    numbers = {int(label) for label in labels if is_number(label)}
    if not numbers or not all(map(is_number, filter(None, labels))):
        return None, []
    notes: list[str] = []
    for path in _class_files(table.parent):
        if path == table:
            continue
        try:
            stated = read_classes(path)
        except DataError as error:
            notes.append(f"note: {path} is not used: {error.message}")
            continue
        first = 0 if 0 in numbers else stated.first
        if min(numbers) >= first and max(numbers) == first + len(stated.names) - 1:
            return path, [f"read the classes {path}"]
        what = f"it names {len(stated.names)} classes, and the labels are {min(numbers)} to {max(numbers)}"
        notes.append(f"note: {path} is not used: {what}; data.classes can name it")
    return None, notes
