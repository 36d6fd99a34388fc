"""Clips that show the same under two names: they get one group, so that they are in one split. Torch-free."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stagedkd.data.address import without_part
from stagedkd.data.index import Entry
from stagedkd.data.layouts.modalities import RGB, modality
from stagedkd.data.layouts.walk import VIDEO_SUFFIXES


def with_twins(root: Path, entries: Sequence[Entry]) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Return the entries with one group for clips of one name or one file, and notes.

    walk/1.mp4, walk/1.webm, walk/1.mp4.avi, the pictures in walk/1/ and in walk/1/rgb/ have one name, without regard to
    case and to the form in Unicode. Links to one file or folder are one. Only groups that nobody stated are changed.
    """
    paths = sorted({without_part(e.path)[0] for e in entries})
    named = _sets(paths, {path: _key(path) for path in paths})
    linked = _sets(paths, _files(root, paths))
    first = _united(paths, [*named, *linked])
    sets: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        sets[first[path]].append(path)
    group = {path: min(map(_name, row)) for row in sets.values() if len(row) > 1 for path in row}
    changed = tuple(
        replace(e, group=group[path]) if (path := without_part(e.path)[0]) in group and _is_default(e) else e
        for e in entries
    )
    groups: dict[str, set[str]] = defaultdict(set)
    for entry in changed:
        groups[first[without_part(entry.path)[0]]].add(entry.group)
    whole = [row for row in named if len(groups[first[row[0]]]) == 1]
    links = [row for row in linked if len(groups[first[row[0]]]) == 1 and row not in named]
    torn = [row for row in (*named, *linked) if len(groups[first[row[0]]]) > 1]
    notes: list[str] = []
    for rows, what, end in (
        (whole, "there twice under one name", "each pair is one group"),
        (links, "there twice by links to one file", "each pair is one group"),
        (torn, "there twice", "their groups differ in the table"),
    ):
        if rows:
            notes.append(f"{len(rows)} clips are {what}, such as {', '.join(min(rows))}: {end}")
    return changed, tuple(notes)


def _is_default(entry: Entry) -> bool:
    path = without_part(entry.path)[0]
    return entry.group in (entry.path, path, path.rpartition("/")[0] if "{" in PurePosixPath(path).name else path)


def _name(path: str) -> str:
    """Return the name that the forms of one clip share: without suffixes, and without a folder of RGB pictures."""
    pure = PurePosixPath(path)
    if "{" in pure.name:
        what = modality(path)
        return "/".join(what.base) if what.kind == RGB else pure.parent.as_posix()
    while pure.suffix.lower() in VIDEO_SUFFIXES:
        pure = pure.with_suffix("")
    return pure.as_posix()


def _key(path: str) -> str:
    """Return the name in one form. Folders keep their case: Walk/1 and walk/1 are clips of two classes."""
    folder, slash, name = unicodedata.normalize("NFC", _name(path)).rpartition("/")
    return folder + slash + name.casefold()


def _files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the file, or the folder of pictures, that each path leads to through links."""
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for path in paths:
        above, _, name = path.rpartition("/")
        try:
            if above not in folders:
                folders[above] = os.path.realpath(root / above)
            file = Path(folders[above], name)
            files[path] = os.path.realpath(file) if file.is_symlink() else str(file)
        except (OSError, ValueError):
            files[path] = path
    return files


def _sets(paths: Iterable[str], marks: Mapping[str, str]) -> list[list[str]]:
    """Return the sets of two paths or more that have one mark."""
    rows: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        rows[marks[path]].append(path)
    return [row for row in rows.values() if len(row) > 1]


def _united(paths: Iterable[str], sets: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the first path of the set that each path is in, where sets that share a path are one."""
    above = {path: path for path in paths}

    def top(path: str) -> str:
        while above[path] != path:
            above[path] = above[above[path]]
            path = above[path]
        return path

    for row in sets:
        for path in row[1:]:
            one, other = sorted((top(row[0]), top(path)))
            above[other] = one
    return {path: top(path) for path in above}
