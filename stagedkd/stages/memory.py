"""The peak of the memory that the work of a stage takes."""

# pyright: reportUnknownMemberType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")


def reset_peak() -> None:
    """Begin to measure. Where the system cannot do it, the peak is that of the process so far."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5", "ascii")  # Linux: the peak of the resident memory begins anew


def peak_memory() -> dict[str, int]:
    """The peak in bytes since `reset_peak`: `resident`, of this process, and `device`, of the current CUDA device. What
    the system does not tell is left out."""
    found: dict[str, int] = {}
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        found["device"] = int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = (PROCESS / "status").read_text("ascii").splitlines()
        found["resident"] = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return found
