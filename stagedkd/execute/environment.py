"""What results may hang on beside their keys, for run.json: code, packages, machine. Imports none of the packages."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stagedkd._version import __version__

PACKAGES = (
    "av", "numpy", "pillow", "pyarrow", "safetensors", "scipy", "torch", "torchcodec", "torchvision", "transformers"
)  # fmt: skip
SAME = (
    "stagedkd",
    "code",
    "python",
    "machine",
    "device",
    "device_name",
    "threads",
    "gpus",
    "compile",
)  # and each package


@cache
def environment() -> dict[str, Any]:
    """`stagedkd`: its version; `code`: 12 digits of the SHA-256 of its source files; `python`; `machine`; `packages`:
    versions by name."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}"
    return {"stagedkd": __version__, "code": _code(), "python": platform.python_version(), "machine": machine,
            "packages": packages}  # fmt: skip


def _code() -> str:
    root = Path(__file__).resolve().parent.parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Where two run.json differ in what bits may hang on, each as `threads: 4 there, 2 here`; what one of them does
    not say is left out."""
    pairs = [(name, there.get(name), here.get(name)) for name in SAME]
    old, new = there.get("packages") or {}, here.get("packages") or {}
    pairs += [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()) if old and new]
    return [
        f"{name}: {a if a is not None else 'absent'} there, {b if b is not None else 'absent'} here"
        for name, a, b in pairs
        if a != b and (name not in SAME or None not in (a, b))
    ]
