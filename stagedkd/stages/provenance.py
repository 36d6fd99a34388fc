"""The environment of a result, beside its key, for run.json: code, packages, machine. Imports none of the packages.

A stage that was stopped and resumed may have run in several environments: the record `began.json` in its scratch folder
lists them in the form of run.json. A new one is added if it differs from the last; {} is an unknown environment.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias, cast

from stagedkd._version import __version__
from stagedkd.files import DamagedError, read_record, record_text, write_whole
from stagedkd.plan.cpus import chosen_instructions
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
    "cpu_family",
    "caches",
    "instructions",
    "cpu_capability",
    "device",
    "device_name",
    "threads",
    "gpus",
    "compile",
)  # and each package


@cache
def environment() -> dict[str, Any]:
    """The environment of this process: `stagedkd`, its version; `code`, 12 digits of the SHA-256 of its source files;
    `python`; `machine`; `cpu`, its model; `cpu_family`, that of its maker; `caches`, their sizes by level;
    `instructions`, the variables that limit them; `packages`, their versions by name."""
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
        "cpu_family": _cpu_family(),
        "caches": caches(),
        "instructions": chosen_instructions() or "all",
        "packages": packages,
    }


def cpu() -> str:
    """The model of the CPU, or its architecture if the system does not name the model."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpu_family() -> str:
    """Family, model and stepping of the CPU, such as "25.1.1"; "" if the system does not tell. Clouds hide the model's
    name."""
    facts = _cpuinfo()
    return ".".join(facts[name] for name in ("cpu family", "model", "stepping") if facts.get(name))


def _cpuinfo() -> dict[str, str]:
    """What Linux tells of the first CPU."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    rows = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> str:
    """The sizes of the CPU's caches, such as "L1d 32K, L2 512K, L3 32768K"; "" if the system does not tell. Kernels cut
    their sums into pieces by them, so that equal CPUs with other caches can give other last bits."""
    found: dict[str, str] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text("utf-8").strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' and level == '1' else ''}"] = size
    return ", ".join(f"{name} {size}" for name, size in sorted(found.items()))


def _code() -> str:
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], words: tuple[str, str] = ("there", "here")
) -> list[str]:
    """List the facts of two run.json that differ and that bits may depend on, each as `threads: 4 there, 2 here`, or as
    `threads: unknown there, 2 here` if only one of them has the fact."""
    rows = [(name, old.get(name), new.get(name), "unknown") for name in SAME]
    old_packages, new_packages = old.get("packages"), new.get("packages")
    if old_packages and new_packages:
        names = sorted(old_packages.keys() | new_packages.keys())
        rows += [(name, old_packages.get(name), new_packages.get(name), "absent") for name in names]
    elif old_packages or new_packages:
        rows.append(("packages", old_packages and "known", new_packages and "known", "unknown"))
    first, second = words
    return [
        f"{name}: {none if a is None else a} {first}, {none if b is None else b} {second}"
        for name, a, b, none in rows
        if a != b
    ]


def read_environments(scratch: Path) -> list[Facts]:
    """Read the environments in which an unfinished stage has run so far; none if there is nothing to resume from."""
    if not unfinished(scratch):
        return []
    try:
        content: Any = read_record((scratch / ENVIRONMENTS).read_bytes())[0].get("environments")
    except (OSError, DamagedError):
        content = None
    if not isinstance(content, list) or not content or not all(map(_is_environment, cast("list[Any]", content))):
        return [{}]
    return cast("list[Facts]", content)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and (not value or {"gpus", "threads"} <= cast("Facts", value).keys())


def write_environments(scratch: Path, environments: Sequence[Facts]) -> None:
    """Save the environments for the run that resumes the stage."""
    write_whole(scratch / ENVIRONMENTS, record_text({"environments": list(environments)}))


def several_environments(scratch: Path) -> dict[str, list[Facts]]:
    """The field `began` of run.json, if a finished stage has run in several environments."""
    environments = read_environments(scratch)
    return {"began": environments} if len(environments) > 1 else {}


def describe_environments(run: Facts) -> str:
    """Describe how the environments of a run.json differ: `gpus: 2, then gpus: 1`; "" if there was only one."""
    environments = [_flat(facts) for facts in run.get("began", ())]
    known = [facts for facts in environments if facts]
    names = dict.fromkeys(name for facts in known for name in facts)
    different = [name for name in names if any(facts.get(name) != known[0].get(name) for facts in known)]

    def describe(facts: dict[str, Any]) -> str:
        if not facts:
            return "unknown"
        return ", ".join(f"{name}: {facts.get(name, 'absent')}" for name in different) or "what run.json says"

    return ", then ".join(map(describe, environments))


def _flat(facts: Facts) -> dict[str, Any]:
    return {name: facts[name] for name in SAME if name in facts} | dict(facts.get("packages") or {})
