"""Readers of the layouts in which video data sets lie on the disk. Torch-free.

Each reader lists the clips with class and group, and every file that is no clip with the reason. The test clips of an
official list have the split `test`; its training clips have none yet, since validation clips are drawn from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from stagedkd.data.index import A_LIST, Entry, Listing
from stagedkd.data.layouts.class_files import read_classes
from stagedkd.data.layouts.classes import ClassList, clean_name, name_notes, require_unique, unused_note, with_classes
from stagedkd.data.layouts.folders import list_folder
from stagedkd.data.layouts.kinetics import list_kinetics
from stagedkd.data.layouts.lists import list_csv
from stagedkd.data.layouts.official import list_hmdb51, list_ucf101
from stagedkd.data.layouts.twentybn import list_jester, list_ssv2
from stagedkd.data.layouts.twins import with_twins
from stagedkd.data.layouts.walk import missing
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Folder, FoldSplit, Hmdb51, Jester, Kinetics, Ssv2, Ucf101, Videos
from stagedkd.spec.schema.videos import below


def list_clips(data: Videos, data_dir: Path) -> Listing:
    """List the clips of a data set on the disk.

    Raises:
        UsageError: the folder, the table or a list is missing. DataError: a list is wrong (names file and line), a
            label is no class, or the name of a clip cannot be written; nothing has been decoded by then.
    """
    try:
        stated, listing = _stated_classes(data, data_dir), _read(data, data_dir)
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}", hint="see its rights and its name"
        ) from None
    _require_writable(listing.entries)
    order = stated or (ClassList(listing.classes, where="the official list") if listing.classes else None)
    try:
        entries, classes = with_classes(listing.entries, order)
    except DataError as error:
        raise DataError(f"{listing.root}: {error.message}", hint=error.hint) from None
    entries, twins = with_twins(listing.root, entries)
    about = (*stated.notes, *unused_note((e.label for e in entries), stated)) if stated else ()
    notes = (*listing.notes, *about, *twins, *name_notes((e.label for e in listing.entries if e.label), classes))
    lists = {**listing.lists}
    if isinstance(data.classes, str):
        lists["classes"] = below(data_dir, data.classes)
    left_out = _without_lists(listing, lists.values())
    return replace(listing, entries=entries, classes=classes, lists=lists, left_out=left_out, notes=notes)


def _without_lists(listing: Listing, lists: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Return what was left out, with the lists themselves under a reason of their own."""
    names = {os.path.relpath(path, listing.root) for path in lists}
    left_out = {r: tuple(p for p in paths if p not in names) for r, paths in listing.left_out.items()}
    known = set(listing.left_out.get(A_LIST, ()))
    found = tuple(sorted(known | {p for paths in listing.left_out.values() for p in paths if p in names}))
    return {r: paths for r, paths in left_out.items() if paths} | ({A_LIST: found} if found else {})


def _read(data: Videos, data_dir: Path) -> Listing:
    root = data.folder_below(data_dir)
    match data:
        case Folder():
            _require(root, "folder")
            return list_folder(root, data)
        case Csv():
            for path in (data.path, data.val, data.test):
                if path is not None:
                    _require(below(data_dir, path), "table")
            return list_csv(below(data_dir, data.path), root, data, data_dir)
        case Ucf101():
            return list_ucf101(root, data.split)
        case Hmdb51():
            return list_hmdb51(root, data.split)
        case Kinetics():
            return list_kinetics(root, data)
        case Ssv2():
            return list_ssv2(root)
        case Jester():
            return list_jester(root)
        case _:
            assert_never(data)


def _require(path: Path, what: str) -> None:
    """Raise UsageError if a folder or a table does not exist."""
    if path.is_dir() if what == "folder" else path.is_file():
        return
    if not path.exists():
        raise missing(path, what)
    hint = "a folder of videos is data: {kind: folder}; a table or list of videos is data: {kind: csv}"
    raise UsageError(f"{path} is not a {what}", hint=hint)


def _stated_classes(data: FoldSplit, data_dir: Path) -> ClassList | None:
    """Return the classes that the spec states, in a list or in a file."""
    if data.classes is None:
        return None
    if isinstance(data.classes, str):
        path = below(data_dir, data.classes)
        _require(path, "list of classes")
        return read_classes(path)
    return ClassList(require_unique(tuple(map(clean_name, data.classes)), "data.classes"))


def _require_writable(entries: Sequence[Entry]) -> None:
    """Raise DataError if a name is not text, or would break the line of a list."""
    for entry in entries:
        for name in (entry.path, entry.label, entry.group):
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                hint = "rename the file or folder: its name is not text in UTF-8, and tables cannot hold it"
                raise DataError(f"the name {shown} cannot be written", hint=hint) from None
