"""Write files completely or not at all, even when several processes write the same file, with the rights of the umask.

Locks of files are the system's own (flock). Where a file system has none, `locked` raises an error: a lock that is only
a file that exists would stay for ever after a kill.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Iterate over all files below a folder, except those removed meanwhile (Python 3.11's rglob fails on them)."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a unique temporary path beside `path` to write to; rename it to `path` at the end, or remove it on error.
    An OSError names `path`."""
    temporary = path.with_name(f"{path.name[:200]}.{os.urandom(6).hex()}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Generator[None]:
    """Inside, an OSError that names no file, as those of a full disk do, or that names another one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or (instead_of is not None and os.fspath(error.filename) == str(instead_of)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write text as UTF-8 and keep its line ends. A reader sees either the old text or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@contextmanager
def usual_rights(path: Path) -> Generator[None]:
    """Inside, a library writes the new file `path` by way of a temporary file that only its owner may read. At the end,
    the file has the rights that the umask gives to others."""
    path.touch()
    rights = path.stat().st_mode & 0o777
    yield
    path.chmod(rights)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock of the file `path` while the context is open. The file and its folder are made; the file stays.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with naming(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
