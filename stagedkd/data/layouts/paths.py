"""Paths in tables: relative to the root where they can be, and led to the file that is meant. Torch-free."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.walk import exists, is_dir, is_hidden, join, shown, walk
from stagedkd.errors import DataError

LINKS_DEPTH = 3  # folders below the root in which links are looked for


@dataclass
class Paths:
    """Turns the paths of tables into paths relative to the root; remembers those that cannot be."""

    root: Path
    data_dir: Path
    pattern: str | None

    def __post_init__(self) -> None:
        self.outside: list[str] = []
        self.spelled = Spelling(self.root)

    def relative(self, written: str) -> str:
        """Return a path as it is kept: relative to the root if it lies below the root or the data root, or if a link
        below the root leads to it.

        Raises:
            DataError: it is longer than a path can be.
        """
        self._require_possible(written)
        path = written if not _is_windows(written, self.root) else written.replace("\\", "/")
        if not path.startswith("/"):
            if re.match(r"[A-Za-z]:/", path):
                self.outside.append(path)
            return os.path.normpath(path)
        # A data root, or a path into it, may lead through links.
        for place in (_without_dots(path), Path(path).resolve()):
            for folder in (self.root, self.root.resolve()):
                if place.is_relative_to(folder):
                    return place.relative_to(folder).as_posix()
            for folder in (self.data_dir, self.data_dir.resolve()):
                if place.is_relative_to(folder):
                    there = self.data_dir.resolve() / place.relative_to(folder)
                    return Path(os.path.relpath(there, self.root.resolve())).as_posix()
        place = Path(path).resolve()
        for target, link in self.links:
            if place.is_relative_to(target):
                return (Path(link) / place.relative_to(target)).as_posix()
        self.outside.append(path)
        return os.path.normpath(path)

    @cached_property
    def links(self) -> list[tuple[Path, str]]:
        """Links near the root that lead out of it: (where to, path of the link), the deepest targets first."""
        found = [(target, link) for target, link in _links(self.root, "", LINKS_DEPTH) if target != Path("/")]
        return sorted(found, key=lambda row: (-len(row[0].parts), row[1]))

    def address(self, path: str) -> tuple[str, int | None]:
        """Return the address of a clip; and if the path is a folder, the number of its pictures, else None."""
        found = self.spelled.find(path)
        if not is_dir(self.root / found):
            return self.spelled(path), None
        runs = [run for run in walk(self.root / found, self.pattern).pictures if "/" not in run.address]
        if len(runs) != 1:
            raise DataError(f"{shown(path)} is a folder without numbered pictures")
        return f"{found}/{runs[0].address}", len(runs[0].names)

    def _require_possible(self, written: str) -> None:
        try:
            os.lstat(self.root / written)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise DataError(f"the path {shown(written[:60])}... is longer than a path can be") from None


def _links(root: Path, folder: str, depth: int) -> Iterator[tuple[Path, str]]:
    try:
        names = sorted(entry.name for entry in os.scandir(root / folder))
    except OSError:
        return
    for name in names:
        path = root / join(folder, name)
        if path.is_symlink():
            yield path.resolve(), join(folder, name)
        elif depth > 1 and not is_hidden(name) and path.is_dir():
            yield from _links(root, join(folder, name), depth - 1)


def _without_dots(path: str) -> Path:
    """Return an absolute path without `..`. Links before the last `..` are followed; others are kept."""
    parts = Path(path).parts
    if ".." not in parts:
        return Path(path)
    last = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:last])), *parts[last:])


def _is_windows(path: str, root: Path) -> bool:
    """Return whether a path was written with backslashes between its folders."""
    return "\\" in path and not exists(root / path)
