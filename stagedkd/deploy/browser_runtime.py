"""The runtime of the demo's page: ONNX Runtime for browsers, one pinned version of one npm package.

The user's own npm fetches the archive once, into the project's cache. From then on no network is needed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from stagedkd.errors import DataError, HostError, UsageError
from stagedkd.files import replacing

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
MEMBERS = {  # what the page loads, and the package's own description, which names its license
    "package/dist/ort.wasm.min.mjs": "ort.wasm.min.mjs",
    "package/dist/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    "package/package.json": "package.json",
}
PATIENCE = 600.0  # seconds that npm may take
_OFFLINE = f"on a machine with a network run `npm pack {PACKAGE}@{VERSION}`, and give the file by --runtime"


def runtime_files(cache: Path, archive: Path | None, note: Callable[[str], None]) -> dict[str, bytes]:
    """Return the runtime's files by name.

    Args:
        cache: the project's cache. It keeps the archive that npm fetched.
        archive: an archive of the user's; None: that of the cache, else npm's.
        note: is told what happens.
    Raises:
        UsageError: the archive is missing or another one, or there is no npm.
        HostError: npm cannot fetch it. DataError: what npm fetched is not the pinned package.
    """
    if archive is not None:
        return _members(_given(archive))
    kept = cache / "npm" / ARCHIVE
    if kept.is_file():
        content = kept.read_bytes()
        if is_pinned(content):
            return _members(content)
        note(f"{kept} is damaged, so it is fetched again")
    content = _fetched(note)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as temporary:
        temporary.write_bytes(content)
    return _members(content)


def is_pinned(content: bytes) -> bool:
    """Return whether an archive is the pinned one, by its SHA-512."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode("ascii") == INTEGRITY


def _given(archive: Path) -> bytes:
    """The content of the user's archive."""
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise UsageError(f"--runtime {archive} cannot be read: {error.strerror}", hint=_OFFLINE) from None
    if not is_pinned(content):
        raise UsageError(f"--runtime {archive} is not {PACKAGE} {VERSION}: its SHA-512 is another", hint=_OFFLINE)
    return content


def _fetched(note: Callable[[str], None]) -> bytes:
    """The archive, fetched by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"npm is not installed, and it fetches {PACKAGE}", hint=f"install Node.js; or {_OFFLINE}")
    note(f"npm fetches {PACKAGE} {VERSION}, 33 MB, once")
    with TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder, "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            message = f"npm did not fetch {PACKAGE} {VERSION} in {PATIENCE:.0f} seconds"
            raise HostError(message, hint=_OFFLINE) from None
        made = Path(folder) / ARCHIVE
        if done.returncode or not made.is_file():
            code = re.search(r"^npm (?:error|ERR!) code (\w+)", done.stderr, re.MULTILINE)
            reason = code[1] if code else f"exit code {done.returncode}"
            raise HostError(f"npm cannot fetch {PACKAGE} {VERSION}: {reason}", hint=_OFFLINE)
        content = made.read_bytes()
    if not is_pinned(content):
        message = f"what npm fetched is not the {PACKAGE} {VERSION} that stagedkd knows: its SHA-512 is another"
        raise DataError(message, hint=f"look at the registry that npm is set up for; or {_OFFLINE}")
    return content


def _members(content: bytes) -> dict[str, bytes]:
    """The files of the runtime, by their names in the page's folder. Only these are read from the archive."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member, name in MEMBERS.items():
            opened = archive.extractfile(member)
            assert opened is not None  # the archive is the pinned one
            files[name] = opened.read()
    return files
