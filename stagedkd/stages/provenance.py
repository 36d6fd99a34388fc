"""What results may hang on beside their keys, for run.json: code, packages, machine. Imports none of the packages."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stagedkd._version import __version__

PACKAGES = (
    "av",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "scipy",
    "torch",
    "torchcodec",
    "torchvision",
    "transformers",
)
SAME = (
    "stagedkd",
    "code",
    "python",
    "machine",
    "cpu",
    "cpu_capability",
    "device",
    "device_name",
    "threads",
    "gpus",
    "compile",
)  # and each package


@cache
def environment() -> dict[str, Any]:
    """`stagedkd`: its version; `code`: 12 digits of the SHA-256 of its source files; `python`; `machine`; `cpu`: its
    model; `packages`: versions by name."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()}"
    return {
        "stagedkd": __version__,
        "code": _code(),
        "python": platform.python_version(),
        "machine": machine,
        "cpu": cpu(),
        "packages": packages,
    }


def cpu() -> str:
    """The model of the CPU, or its family where the system does not say more."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def _code() -> str:
    root = Path(__file__).resolve().parent.parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], words: tuple[str, str] = ("there", "here")
) -> list[str]:
    """Where two run.json differ in what bits may hang on, each as `threads: 4 there, 2 here`, or `threads: unknown
    there, 2 here` where one of them alone says it."""
    pairs = [(name, there.get(name), here.get(name), "unknown") for name in SAME]
    old, new = there.get("packages"), here.get("packages")
    if old and new:
        pairs += [(name, old.get(name), new.get(name), "absent") for name in sorted(old.keys() | new.keys())]
    elif old or new:
        pairs.append(("packages", old and "known", new and "known", "unknown"))
    first, second = words
    return [
        f"{name}: {none if a is None else a} {first}, {none if b is None else b} {second}"
        for name, a, b, none in pairs
        if a != b
    ]
