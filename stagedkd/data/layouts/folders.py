"""Class folders, and split folders above or below them. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stagedkd.data.index import Entry, Listing
from stagedkd.data.layouts.modalities import require_classes, require_one_each
from stagedkd.data.layouts.splits import Order, find_splits
from stagedkd.data.layouts.walk import (
    BROKEN_LINK,
    DOCUMENT_SUFFIXES,
    HIDDEN,
    NO_SEQUENCE,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Walk,
    is_hidden,
    shown,
    walk,
)
from stagedkd.errors import DataError
from stagedkd.spec.schema import Folder

NO_CLASS = "in no class folder"
HINT = "put the videos of each class into a folder of its name: CLASS/CLIP.mp4"


def list_folder(root: Path, data: Folder) -> Listing:
    """List the clips in class folders: CLASS/..., or SPLIT/CLASS/... or CLASS/SPLIT/... below the root, where the names
    of folders say so.

    Raises:
        DataError: there are no clips, a class has lost all of its clips, or split folders are mixed with classes.
    """
    files = walk(root, data.pictures)
    above = {address: _above(address) for address in files.addresses}
    order = Order()
    if data.folders != "classes":
        order = find_splits(root, list(above.values()), files.folders, forced=data.folders == "splits")
    if data.folders == "splits" and not order.splits:
        hint = "name the folders train, val and test, or leave out data.folders"
        raise DataError(f"{root} has no folder that is named as a split", hint=hint)
    read = {address: told for address, folders in above.items() if (told := order.read(folders))}
    entries = [Entry(address, label, address, split) for address, (label, split) in read.items()]
    outside = [address for address in files.addresses if address not in read]
    left_out = _with_outside(files, outside)
    if not entries:
        raise DataError(f"no videos below {root}{_reasons(left_out)}", hint=HINT)
    odd = [] if data.folders == "classes" else require_classes(root, (e.label for e in entries))
    require_one_each(root, (e.path for e in entries))
    notes = [*order.notes, *odd, *lost_classes(root, order.depth, [e.path for e in entries], left_out)]
    if order.splits:
        notes += _split_notes(order, entries, outside)
    if not any(e.split == "val" for e in entries):  # validation is then drawn from the training clips
        entries = [replace(e, split="") if e.split == "train" else e for e in entries]
    return Listing(root, tuple(entries), (), left_out=left_out, notes=tuple(notes))


def _above(address: str) -> tuple[str, ...]:
    """Return the folders that a clip lies in. A folder of pictures is a clip itself."""
    parts = PurePosixPath(address).parts
    return parts[: -2 if "{" in parts[-1] else -1]


def _split_notes(order: Order, entries: Sequence[Entry], outside: Sequence[str]) -> list[str]:
    names = dict.fromkeys(name.rpartition("/")[2] for name in order.splits)
    told = ", ".join(f"{name}/" for name in names) + (" in the class folders" if order.inner else "")
    notes = [f"the splits are those of the folders {told}: that no person or scene is in two is up to you"]
    known = {e.path.partition("/")[0] for e in entries}
    flat = sorted({a.partition("/")[0] for a in outside if "/" in a})
    notes += [
        f"{name}/ has no class folders: its clips have no label and are left out" for name in flat if name not in known
    ]
    return notes


def _with_outside(files: Walk, outside: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what was left out, with the videos and pictures that lie in no class folder."""
    left_out = dict(files.left_out)
    pictures = {run.address: run for run in files.pictures}
    lost = [address for address in outside if address not in pictures]
    lost += [name for address in outside if address in pictures for name in pictures[address].names]
    if lost:
        left_out[NO_CLASS] = tuple(sorted(lost))
    return left_out


def _reasons(left_out: Mapping[str, Sequence[str]]) -> str:
    """Return how many files were left out and why, for a message; "" if there are none."""
    rows = [f"{len(paths)} {reason}, such as {shown(paths[0])}" for reason, paths in left_out.items()]
    return "".join(f"\n    {row}" for row in rows)


def lost_classes(root: Path, depth: int, addresses: Sequence[str], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Return notes on folders that are no classes. `depth`: that of class folders below the root.

    Raises:
        DataError: a class folder holds files, and none of them is a clip.
    """
    alive = {"/".join(PurePosixPath(a).parts[:depth]) for a in addresses}
    lost: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for reason, paths in left_out.items():
        for path in paths:
            parts = PurePosixPath(path).parts
            folder = "/".join(parts[:depth])
            if len(parts) > depth and folder not in alive and reason != HIDDEN:
                lost[folder][reason].append(path)
    notes: list[str] = []
    for folder, reasons in sorted(lost.items()):
        suffixes = {PurePosixPath(p).suffix.lower() for paths in reasons.values() for p in paths}
        if suffixes <= DOCUMENT_SUFFIXES:
            notes.append(f"{folder}/ is no class: it holds only {', '.join(sorted(suffixes))}")
            continue
        rows = {
            ("pictures in no folder of a clip" if r in (NO_SEQUENCE, NO_CLASS) else r): p for r, p in reasons.items()
        }
        hint = "convert the files, for example to .mp4, or move the folder away"
        raise DataError(f"the class {shown(folder)} has no clip:{_reasons(rows)}", hint=hint)
    hidden = {"/".join(PurePosixPath(path).parts[:depth]) for path in left_out.get(HIDDEN, ())}
    for folder in _folders_at(root, depth):
        if folder not in alive and folder not in lost:
            what = "holds only hidden files" if folder in hidden else "is empty"
            notes.append(f"{shown(folder)}/ {what}: it is no class")
    return notes + _dead_links(depth, left_out)


def _dead_links(depth: int, left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Return notes on links that may have been class folders, and lead to nothing."""
    dead = [path for path in left_out.get(BROKEN_LINK, ()) if len(PurePosixPath(path).parts) <= depth]
    files = VIDEO_SUFFIXES | PICTURE_SUFFIXES | DOCUMENT_SUFFIXES
    dead = [path for path in dead if PurePosixPath(path).suffix.lower() not in files]
    return [f"{shown(path)} is a link to nothing: if it is a folder of clips, they are lost" for path in dead]


def _folders_at(root: Path, depth: int) -> list[str]:
    """Return the folders at a depth below the root that are not hidden."""
    paths = [p for p in root.glob("/".join(["*"] * depth)) if p.is_dir()]
    names = sorted(p.relative_to(root).as_posix() for p in paths)
    return [name for name in names if not any(is_hidden(part) for part in name.split("/"))]
