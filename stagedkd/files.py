"""Write files completely or not at all, even when several processes write the same file."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Iterate over all files below a folder, except those removed meanwhile (Python 3.11's rglob fails on them)."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a unique temporary path beside `path` to write to; rename it to `path` at the end, or remove it on error."""
    temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write text as UTF-8 and keep its line ends. A reader sees either the old text or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
