"""How long the language takes, as a ratio to `import torch`: `check specs/ucf101.yaml` (at most 0.25) and `plan` of a
grid of 1,000 cells (at most 1.0). The three commands alternate; medians are compared. All with bytecode.

    python benchmarks/language.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRID = """\
extends: {parent}
grid:
  seeds: 10
  axes:
    recipe: [ce, kd, hint, staged]
    student: {{w4: {{}}, w8: {{width: 8}}, w12: {{width: 12}}, w16: {{width: 16}}, w20: {{width: 20}}}}
    labels.clean: [0.05, 0.1, 0.2, 0.5, 1.0]
"""


def seconds(command: list[str]) -> float:
    """Wall time of one run, which must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        grid = Path(folder) / "grid.yaml"
        grid.write_text(GRID.format(parent=os.path.relpath(ROOT / "specs" / "quickstart.yaml", folder)), "utf-8")
        cli = [sys.executable, "-m", "stagedkd.cli"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "check specs/ucf101.yaml": [*cli, "check", "specs/ucf101.yaml"],
            "plan of 1,000 cells": [*cli, "plan", str(grid)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                took = seconds(command)
                if number:  # the first round writes bytecode and warms the disk
                    times[name].append(took)
    base = times["import torch"]
    for name, took in times.items():
        ratios = [a / b for a, b in zip(took, base, strict=True)]
        print(
            f"{name:<24} median {statistics.median(took):.2f} s ({min(took):.2f} to {max(took):.2f}), "
            f"ratio of medians {statistics.median(took) / statistics.median(base):.3f}, "
            f"of pairs {min(ratios):.3f} to {max(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
