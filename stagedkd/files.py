"""Write files completely or not at all, even when several processes write the same file, with the rights of the umask;
and tell damaged ones.

A record is JSON with its own digest: SHA-256 over its other values. A sealed file ends in the digest of what is before.
Locks of files are the system's own (flock). Where a file system has none, `locked` raises an error: a lock that is only
a file that exists would stay for ever after a kill.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

DIGEST = "digest"  # the field of a record that holds its digest
SEAL = b"\nsha256:"  # begins the last 72 bytes of a sealed file; 64 hex digits follow


class DamagedError(ValueError):
    """A file does not hold what was written to it. The message says so without the file's name."""


@dataclass(frozen=True)
class FileBytes:
    """The content of a file, read once: the bytes that are hashed are the bytes that are used."""

    path: Path
    content: bytes

    @classmethod
    def read(cls, path: Path) -> FileBytes:
        """Read a file. Raises OSError."""
        return cls(path, path.read_bytes())

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()


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
            flush(temporary)
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


def flush(path: Path) -> None:
    """Flush a file or folder to the disk (fsync). After a rename, the folder must be flushed for the name to stay."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def record_text(values: Mapping[str, Any]) -> str:
    """Return plain JSON values as a record: text with their digest."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values)))  # whose names are all text, as when it is read
    sealed = {**plain, DIGEST: json_digest(plain)}
    return json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_record(content: bytes | str) -> tuple[dict[str, Any], bool]:
    """Read a record.

    Returns:
        its values without the digest, and whether it had one: records of earlier versions have none.
    Raises:
        DamagedError: it is not JSON, or not what was written.
    """
    try:
        parsed: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise DamagedError("cannot be read: it is not JSON") from None
    if not isinstance(parsed, dict):
        raise DamagedError("cannot be read: it is not a JSON object")
    values = cast("dict[str, Any]", parsed)
    has_digest = DIGEST in values
    if has_digest and values.pop(DIGEST) != json_digest(values):
        raise DamagedError("was changed after it was written: its digest differs")
    return values, has_digest


def json_digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON values, 64 hex digits, however they are spaced and ordered."""
    text = json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(sha256: str) -> bytes:
    """Return what a sealed file has after its content: the digest of the content."""
    return SEAL + sha256.encode()


def unsealed(content: bytes) -> memoryview:
    """Return the content of a sealed file, without its seal.

    Raises:
        DamagedError: it has no seal, or is not what was written.
    """
    body = memoryview(content)[: -len(seal("0" * 64))]
    if not content.endswith(seal(hashlib.sha256(body).hexdigest())):
        raise DamagedError("is damaged, or another version of stagedkd wrote it: its digest differs")
    return body


def write_sealed(path: Path, content: bytes) -> None:
    """Write a sealed file. It is on the disk when this returns."""
    with replacing(path) as temporary:
        temporary.write_bytes(content + seal(hashlib.sha256(content).hexdigest()))
    flush(path.parent)
