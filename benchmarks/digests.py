"""What the digests cost in a run of the quickstart: the CPU time of hashing, and the wall time of flushing.

    python benchmarks/digests.py [EPOCHS]    # of the teacher (default: the spec's own); hops have five sixths of it

Everything that is hashed counts, also what was hashed before digests were checked where they are read, so the share is
an upper bound of what the checks cost.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stagedkd import load_spec, report, run
from stagedkd.plan.runtime import Runtime

REPO = Path(__file__).resolve().parent.parent
spent = {"sha256": 0.0, "fsync": 0.0}


class Timed:
    """A hash object whose calls are timed."""

    def __init__(self, *given: Any, **options: Any) -> None:
        began = time.process_time()
        self.inner = original(*given, **options)
        spent["sha256"] += time.process_time() - began

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not callable(method):
            return method

        def call(*given: Any) -> Any:
            began = time.process_time()
            try:
                return method(*given)
            finally:
                spent["sha256"] += time.process_time() - began

        return call


original = hashlib.sha256


def timed_fsync(number: int) -> None:
    """Flush a file, and add up the wall time."""
    began = time.perf_counter()
    flush(number)
    spent["fsync"] += time.perf_counter() - began


flush = os.fsync


def main(epochs: int | None) -> None:
    """Run the quickstart in a temporary folder, in this process, and print the shares."""
    hashlib.sha256 = Timed  # type: ignore[assignment]
    os.fsync = timed_fsync  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        text = (REPO / "specs" / "quickstart.yaml").read_text("utf-8")
        if epochs is not None:
            text = text.replace("labels: all, epochs: 24", f"labels: all, epochs: {epochs}")
            text = text.replace("  epochs: 20", f"  epochs: {max(4, epochs * 5 // 6)}")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("tune")) + "\n"
        (spec := Path(folder) / "specs" / "quickstart.yaml").parent.mkdir()
        spec.write_text(text, "utf-8")
        runtime = Runtime(root=folder, device="cpu", threads=1, jobs=1)
        cpu, wall = time.process_time(), time.perf_counter()
        report(run(load_spec(spec), runtime).plan, runtime)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"sha256 {spent['sha256']:.2f} of {cpu:.0f} s of CPU time ({spent['sha256'] / cpu:.2%})")
    print(f"fsync {spent['fsync']:.2f} of {wall:.0f} s of wall time ({spent['fsync'] / wall:.2%})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
