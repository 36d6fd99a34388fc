"""Class folders, and split folders of class folders. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stagedkd.data.index import Entry, Listing
from stagedkd.data.layouts.walk import DOCUMENT_SUFFIXES, HIDDEN, NO_SEQUENCE, Walk, is_hidden, shown, walk
from stagedkd.errors import DataError
from stagedkd.spec.schema import Folder

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
NO_CLASS = "in no class folder"
HINT = "put the videos of each class into a folder of its name: CLASS/CLIP.mp4"


@dataclass(frozen=True)
class _Place:
    """The folder of a class: its path relative to the root, its class, and its split ("" if there are no splits)."""

    folder: str
    label: str
    split: str = ""


def list_folder(root: Path, data: Folder) -> Listing:
    """List the clips in class folders: root/CLASS/..., or root/SPLIT/CLASS/... where the folders are named as splits.

    Raises:
        DataError: there are no clips, a class has lost all of its clips, or split folders are mixed with classes.
    """
    files = walk(root, data.pictures)
    splits = _split_folders(files) if data.folders != "classes" else {}
    to_draw = "train" if "val" not in splits.values() else ""  # validation is then drawn from the training clips
    if data.folders == "splits" and not splits:
        raise DataError(f"{root} has no folders train/CLASS, val/CLASS or test/CLASS", hint="see data.folders")
    if splits:
        _require_only_splits(root, files, splits)
    depth, notes = (2 if splits else 1), list[str]()
    entries: list[Entry] = []
    outside: list[str] = []
    for address in files.addresses:
        parts = PurePosixPath(address).parts
        # A picture run needs a folder of its own below the class, since its folder is the clip.
        if len(parts) <= depth + ("{" in parts[-1]):
            outside.append(address)
        else:
            split = splits.get(parts[0], "")
            entries.append(Entry(address, parts[depth - 1], address, "" if split == to_draw else split))
    left_out = _with_outside(files, outside)
    if not entries:
        raise DataError(f"no videos below {root}{_reasons(left_out)}", hint=HINT)
    notes += lost_classes(root, depth, [e.path for e in entries], left_out)
    if splits:
        told = ", ".join(f"{name}/" for name in splits)
        notes.append(f"the splits are those of the folders {told}: that no person or scene is in two is up to you")
    return Listing(root, tuple(entries), (), left_out=left_out, notes=tuple(notes))


def _split_folders(files: Walk) -> dict[str, str]:
    """Return folder -> split if the folders directly below the root are splits of class folders, else {}."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in files.folders if name.lower() in SPLIT_NAMES}
    if "train" not in splits.values():
        return {}
    inside: dict[str, set[bool]] = defaultdict(set)
    for address in files.addresses:
        first, *rest = PurePosixPath(address).parts
        # In class folders, a clip of split `train` is train/CLASS/CLIP.mp4 or train/CLASS/CLIP/img_{:05}.jpg.
        inside[first].add(len(rest) >= 2 + ("{" in rest[-1]) if rest else False)
    if not all(inside[name] <= {True} for name in splits):
        return {}
    alone = set(files.folders) == set(splits)
    return splits if len(set(splits.values())) > 1 or alone else {}


def _require_only_splits(root: Path, files: Walk, splits: Mapping[str, str]) -> None:
    """Raise DataError if a folder beside the split folders holds clips, or two folders are the same split."""
    others = sorted({a.partition("/")[0] for a in files.addresses if "/" in a} - splits.keys())
    if others:
        told = ", ".join(f"{name}/" for name in splits)
        hint = f"move {others[0]}/ away; or, if all of them are classes, set data: {{folders: classes}}"
        raise DataError(f"{root} has split folders ({told}) and {others[0]}/, which also holds videos", hint=hint)
    names: dict[str, list[str]] = defaultdict(list)
    for folder, split in splits.items():
        names[split].append(folder)
    for split, folders in names.items():
        if len(folders) > 1:
            hint = "put them into one folder; or, if they are classes, set data: {folders: classes}"
            raise DataError(f"{root}: {' and '.join(folders)} are both the {split} split", hint=hint)


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
    empty = [d for d in _folders_at(root, depth) if d not in alive and d not in lost]
    return notes + [f"{shown(folder)}/ is empty: it is no class" for folder in empty]


def _folders_at(root: Path, depth: int) -> list[str]:
    """Return the folders at a depth below the root that are not hidden."""
    paths = [p for p in root.glob("/".join(["*"] * depth)) if p.is_dir()]
    names = sorted(p.relative_to(root).as_posix() for p in paths)
    return [name for name in names if not any(is_hidden(part) for part in name.split("/"))]
