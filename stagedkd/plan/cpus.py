"""The CPUs that this process may use, how long their threads wait awake, and the instructions that they may use.
Nothing here is part of a key."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from stagedkd.errors import UsageError

ROOT = Path("/")
SPINS = "2000"  # about 0.1 ms; measured in docs/performance.md
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # variables by which a user says how threads wait
PORTABLE = {  # the newest instructions that oneDNN, torch and MKL may use, by variable: any x86 CPU since 2013 has them
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
}
AVX2_KERNELS = "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2"  # those that a CPU without newer instructions takes
AFFINITY = "the number of its CPUs"


@dataclass(frozen=True)
class Cpus:
    """The number of CPUs that this process may use, and what limits it, in words."""

    count: int
    limit: str

    @property
    def limited(self) -> bool:
        """Whether something else than the CPUs that the kernel lets the process run on limits the number."""
        return self.limit != AFFINITY


def usable_cpus(environ: Mapping[str, str] = os.environ, root: Path = ROOT, affinity: int | None = None) -> Cpus:
    """Find how many CPUs this process may use: the least of its affinity, the CPU quota of its control groups (rounded
    down), OMP_NUM_THREADS and SLURM_CPUS_PER_TASK. It is one at least.

    Args:
        root: the folder that has `proc/` and `sys/`. affinity: the number of CPUs that the kernel lets this process run
            on; None asks the kernel.
    """
    found = [Cpus(affinity or _affinity(), AFFINITY)]
    found += [Cpus(max(1, int(quota)), "the CPU quota of the control group") for quota in _quotas(root)]
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        first = environ.get(name, "").partition(",")[0].strip()  # OMP_NUM_THREADS has a number for each level
        if first.isdecimal() and int(first):
            found.append(Cpus(int(first), name))
    return min(found, key=lambda cpus: cpus.count)


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for one another sleep after a short while, unless the user has set how they wait. GNU's
    OpenMP runtime reads the variable when torch is loaded, so call this before."""
    if not any(name in environ for name in WAITING):
        environ["GOMP_SPINCOUNT"] = SPINS


def limit_instructions(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let torch and its libraries use no newer instructions than most x86 CPUs have (`runtime.bits: portable`). They
    read the variables when they are loaded, so call this before.

    Raises:
        UsageError: torch is loaded already, without these variables.
    """
    missing = {name: value for name, value in PORTABLE.items() if environ.get(name) != value}
    if missing and "torch" in sys.modules:
        settings = " ".join(f"{name}={value}" for name, value in missing.items())
        hint = f"set these variables before Python starts: {settings}"
        raise UsageError("runtime.bits: portable must be known before torch is loaded, and it is loaded", hint=hint)
    environ.update(missing)


def chosen_instructions(environ: Mapping[str, str] = os.environ) -> str:
    """The variables of `PORTABLE` that are set, such as "MKL_CBWR=COMPATIBLE"; "" if none is."""
    return " ".join(f"{name}={environ[name]}" for name in sorted(PORTABLE) if name in environ)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control groups and of all groups above them, in CPUs. In a container the groups
    that /proc names may not be visible; those above them are."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        folder = root / "sys/fs/cgroup"
        if names and "cpu" not in names.split(","):
            continue
        version_1 = [folder / "cpu", folder / names] if names else []
        for top in version_1 or [folder]:
            group = top / path.lstrip("/")
            for each in (group, *(above for above in group.parents if above.is_relative_to(top))):
                yield from _quota(each)


def _quota(group: Path) -> Iterator[float]:
    """The quota of one control group, in CPUs: nothing if it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text("utf-8") for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
