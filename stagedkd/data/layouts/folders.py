"""Class folders, and split folders of class folders. Torch-free."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stagedkd.data.index import Entry, Listing
from stagedkd.data.layouts.walk import DOCUMENT_SUFFIXES, HIDDEN, NO_SEQUENCE, Walk, is_hidden, shown, walk
from stagedkd.errors import DataError
from stagedkd.spec.schema import Folder

SPLIT_NAMES = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "validate", "dev", "eval", "evaluation"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}
_BESIDE_WORDS = "clips data frames images pictures rawframes rgb set split videos"  # train_set, videos_val
_BESIDE = frozenset(_BESIDE_WORDS.split())
NO_CLASS = "in no class folder"
HINT = "put the videos of each class into a folder of its name: CLASS/CLIP.mp4"


def split_of(name: str) -> str | None:
    """Return the split that a folder is named after, such as train, Validation, videos_val or test_256; else None."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in _BESIDE]
    return SPLIT_NAMES.get(words[0]) if len(words) == 1 else None


def list_folder(root: Path, data: Folder) -> Listing:
    """List the clips in class folders: root/CLASS/..., or root/SPLIT/CLASS/... where the folders are named as splits.

    Raises:
        DataError: there are no clips, a class has lost all of its clips, or split folders are mixed with classes.
    """
    files = walk(root, data.pictures)
    splits = {} if data.folders == "classes" else _split_folders(root, files, forced=data.folders == "splits")
    if data.folders == "splits" and not splits:
        hint = "name the folders train, val and test, or leave out data.folders"
        raise DataError(f"{root} has no folder that is named as a split", hint=hint)
    depth = 2 if splits else 1
    entries: list[Entry] = []
    outside: list[str] = []
    for address in files.addresses:
        if _depth(address) <= depth:
            outside.append(address)
        else:
            parts = PurePosixPath(address).parts
            entries.append(Entry(address, parts[depth - 1], address, splits.get(parts[0], "")))
    left_out = _with_outside(files, outside)
    if not entries:
        raise DataError(f"no videos below {root}{_reasons(left_out)}", hint=HINT)
    notes = lost_classes(root, depth, [e.path for e in entries], left_out)
    if splits:
        notes += _split_notes(splits, entries, outside)
    if not any(e.split == "val" for e in entries):  # validation is then drawn from the training clips
        entries = [replace(e, split="") if e.split == "train" else e for e in entries]
    return Listing(root, tuple(entries), (), left_out=left_out, notes=tuple(notes))


def _depth(address: str) -> int:
    """Return how deep a clip lies, counted from 1 at the root. A folder of pictures is a clip itself."""
    parts = PurePosixPath(address).parts
    return len(parts) - ("{" in parts[-1])


def _split_folders(root: Path, files: Walk, *, forced: bool) -> dict[str, str]:
    """Return folder -> split if the folders directly below the root are splits, else {}.

    Raises:
        DataError: it cannot be told, since the folders are named as splits and hold no class folders, or a folder
            beside them holds clips, or two folders are the same split.
    """
    splits = {name: split for name in files.folders if (split := split_of(name)) is not None}
    deepest: dict[str, int] = defaultdict(int)
    for address in files.addresses:
        first = PurePosixPath(address).parts[0]
        deepest[first] = max(deepest[first], _depth(address))
    splits = {name: split for name, split in splits.items() if name in deepest or forced}
    others = [name for name, depth in deepest.items() if name not in splits and depth > 1]
    if not splits or (not forced and ("train" not in splits.values() or (len(splits) == 1 and others))):
        return {}
    in_classes = any(deepest[name] > 2 for name in splits)
    if others and (in_classes or forced):
        told = ", ".join(f"{name}/" for name in splits)
        hint = f"move {others[0]}/ away; or, if all of them are classes, set data: {{folders: classes}}"
        raise DataError(f"{root} has split folders ({told}) and {others[0]}/, which also holds videos", hint=hint)
    if others:
        return {}
    if not in_classes and len(splits) > 1:
        hint = (
            "if they are classes, set data: {folders: classes}; if tables hold the labels, name them (data.kind: csv)"
        )
        raise DataError(f"{root}: {', '.join(splits)} are named as splits and hold no class folders", hint=hint)
    _require_once_each(root, splits)
    return splits if in_classes or forced else {}


def _require_once_each(root: Path, splits: Mapping[str, str]) -> None:
    """Raise DataError if two folders are the same split."""
    names: dict[str, list[str]] = defaultdict(list)
    for folder, split in splits.items():
        names[split].append(folder)
    for split, folders in names.items():
        if len(folders) > 1:
            hint = "put them into one folder; or, if they are classes, set data: {folders: classes}"
            raise DataError(f"{root}: {' and '.join(folders)} are both the {split} split", hint=hint)


def _split_notes(splits: Mapping[str, str], entries: Sequence[Entry], outside: Sequence[str]) -> list[str]:
    told = ", ".join(f"{name}/" for name in splits)
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
    empty = [d for d in _folders_at(root, depth) if d not in alive and d not in lost]
    return notes + [f"{shown(folder)}/ is empty: it is no class" for folder in empty]


def _folders_at(root: Path, depth: int) -> list[str]:
    """Return the folders at a depth below the root that are not hidden."""
    paths = [p for p in root.glob("/".join(["*"] * depth)) if p.is_dir()]
    names = sorted(p.relative_to(root).as_posix() for p in paths)
    return [name for name in names if not any(is_hidden(part) for part in name.split("/"))]
