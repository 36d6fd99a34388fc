"""Read the user's files of which keys hold the digests: exactly the bytes that were hashed are used."""

from __future__ import annotations

from pathlib import Path

from stagedkd.errors import Advice, DataError
from stagedkd.files import FileBytes

CHANGED = "run the command again, which makes new keys; or restore the file"


def read_pinned(path: Path, digest: str | None, hint: str | Advice = CHANGED) -> FileBytes:
    """Read a file of the user once.

    Args:
        digest: the SHA-256 that a key stands for; None if no key does.
    Raises:
        DataError: the file cannot be read, or has another content. The message names it.
    """
    try:
        file = FileBytes.read(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="restore the file") from None
    if digest is not None and file.digest != digest:
        raise DataError(f"{path} was changed: it is not the file that the stage's key stands for", hint=hint)
    return file
