"""Under what results were made, beside their keys, for run.json: code, packages, machine. Imports none of the packages.

A stage that was stopped and resumed may have run in several environments: `began.json` in its scratch folder lists
them, as run.json has them. A new one is added where it differs from the last; {} stands for one that is not known.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias, cast

from stagedkd._version import __version__
from stagedkd.files import write_whole
from stagedkd.store.store import unfinished

Facts: TypeAlias = Mapping[str, Any]
ENVIRONMENTS = "began.json"

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


def read_environments(scratch: Path) -> list[Facts]:
    """The environments in which an unfinished stage has run so far; none where there is nothing to resume from."""
    if not unfinished(scratch):
        return []
    try:
        read: Any = json.loads((scratch / ENVIRONMENTS).read_text("utf-8"))
    except (OSError, ValueError):
        read = None
    if not isinstance(read, list) or not read or not all(map(_is_environment, cast("list[Any]", read))):
        return [{}]
    return cast("list[Facts]", read)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and (not value or {"gpus", "threads"} <= cast("Facts", value).keys())


def write_environments(scratch: Path, environments: Sequence[Facts]) -> None:
    """Keep them for the run that resumes the stage."""
    write_whole(scratch / ENVIRONMENTS, json.dumps(environments))


def several_environments(scratch: Path) -> dict[str, list[Facts]]:
    """For run.json: `began`, where a finished stage has run in several environments."""
    environments = read_environments(scratch)
    return {"began": environments} if len(environments) > 1 else {}


def describe_environments(run: Facts) -> str:
    """How the environments of a run.json differ: `gpus: 2, then gpus: 1`; "" where there was one."""
    every = [_flat(one) for one in run.get("began", ())]
    known = [one for one in every if one]
    names = dict.fromkeys(name for one in known for name in one)
    other = [name for name in names if any(one.get(name) != known[0].get(name) for one in known)]

    def words(one: dict[str, Any]) -> str:
        if not one:
            return "unknown"
        return ", ".join(f"{name}: {one.get(name, 'absent')}" for name in other) or "what run.json says"

    return ", then ".join(map(words, every))


def _flat(facts: Facts) -> dict[str, Any]:
    return {name: facts[name] for name in SAME if name in facts} | dict(facts.get("packages") or {})
