"""Files that are there whole or not at all, also where several processes write the same one."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder. What others remove meanwhile is left out (Python 3.11's rglob fails there)."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A name of one's own beside `path`, to write to; renamed to `path` at the end, or removed if that fails."""
    temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 with the line ends that the text has. Whoever looks sees the old text, or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
