"""What waiting costs: a training step under several spin limits of the OpenMP runtime, quiet and beside a busy process.

    python benchmarks/threads.py [ROUNDS [SETTING...]]

A process for each setting trains the same small network (w16, 8x24x24, batch 32); the settings take turns, a few steps
each, so that what else runs on the machine meets all of them. Times are wall time in ms a step. `least` is the fastest
step: on a shared machine, the nearest to a quiet one. A ratio is the median over the rounds of the ratio of the turns'
medians. `before` is what libgomp does when nobody sets a limit. Weights must be equal at equal threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

STEPS = 4  # of one turn
SETTINGS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "before": (2, {}),
    "spin 200": (2, {"GOMP_SPINCOUNT": "200"}),
    "spin 1000": (2, {"GOMP_SPINCOUNT": "1000"}),
    "spin 2000": (2, {"GOMP_SPINCOUNT": "2000"}),
    "spin 5000": (2, {"GOMP_SPINCOUNT": "5000"}),
    "spin 20000": (2, {"GOMP_SPINCOUNT": "20000"}),
    "passive": (2, {"OMP_WAIT_POLICY": "passive"}),
    "one thread": (1, {}),
}
BASES = ("before", "one thread")
BURN = "while True: pass"


def train(threads: int) -> None:
    """The process of one setting: for each line on stdin, train a few steps and print the ms of a step and the digest
    of the weights."""
    import torch

    from stagedkd.models.resnet3d import ResNet3d

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = ResNet3d(16, (1, 1, 1), "full", 10)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    clip_BCTHW, labels = torch.randn(32, 3, 8, 24, 24), torch.arange(32) % 10
    for _ in sys.stdin:
        times: list[float] = []
        for _ in range(STEPS):
            started = time.perf_counter()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(clip_BCTHW), labels).backward()
            optimizer.step()
            times.append(1000 * (time.perf_counter() - started))
        print(json.dumps([times, sum(p.double().sum().item() for p in net.parameters())]), flush=True)


def start(threads: int, settings: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the process of one setting."""
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, __file__, "--train", str(threads)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**environment, **settings})


def take_turns(processes: Mapping[str, subprocess.Popen[str]], rounds: int) -> dict[str, list[list[float]]]:
    """The ms of each step of each setting, by round; the first round warms up and is left out. The order rotates."""
    times: dict[str, list[list[float]]] = {name: [] for name in processes}
    names = list(processes)
    for turn in range(rounds + 1):
        sums: dict[int, set[float]] = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            stdin, stdout = processes[name].stdin, processes[name].stdout
            assert stdin is not None and stdout is not None
            stdin.write("\n")
            stdin.flush()
            milliseconds, weights = json.loads(stdout.readline())
            sums.setdefault(SETTINGS[name][0], set()).add(weights)
            times[name] += [milliseconds] if turn else []
        assert all(len(found) == 1 for found in sums.values()), f"a spin limit changed the weights: {sums}"
    return times


def show(title: str, times: Mapping[str, list[list[float]]]) -> dict[tuple[str, str], list[float]]:
    """Print a row for each setting. Returns the ratios of the rounds by setting and base."""
    found_ratios: dict[tuple[str, str], list[float]] = {}
    print(f"{title:<14} {'ms':>8} {'least':>8}" + "".join(f"   / {name:<10}" for name in BASES if name in times))
    turns = {name: [median(turn) for turn in found] for name, found in times.items()}
    for name, found in times.items():
        for base in BASES:
            if base in times:
                found_ratios[name, base] = [a / b for a, b in zip(turns[name], turns[base], strict=True)]
        ratios = [median(found_ratios[name, base]) for base in BASES if base in times]
        row = f"{name:<14} {median(turns[name]):8.1f} {min(map(min, found)):8.1f}"
        print(row + "".join(f"   {ratio:<12.2f}" for ratio in ratios), flush=True)
    return found_ratios


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(int(sys.argv[2]))
        return
    arguments = sys.argv[1:]
    file = arguments.pop(arguments.index("--json") + 1) if "--json" in arguments else None
    arguments = [each for each in arguments if each != "--json"]
    rounds = int(arguments[0]) if arguments else 16
    processes = {name: start(*SETTINGS[name]) for name in arguments[1:] or SETTINGS}
    print(f"{rounds} rounds of {STEPS} steps; load average {os.getloadavg()[0]:.1f}", flush=True)
    burner: subprocess.Popen[bytes] | None = None
    try:
        quiet = show("as it is", take_turns(processes, rounds))
        burner = subprocess.Popen([sys.executable, "-c", BURN])
        beside = show("\nbeside another", take_turns(processes, rounds))
    finally:
        if burner is not None:
            burner.kill()
        for process in processes.values():
            process.kill()
    if file is not None:
        rows = [
            _row("two threads beside a burning process / one thread", beside["spin 2000", "one thread"], 0.9),
            _row("two threads, quiet / commit before", quiet["spin 2000", "before"], 1.02),
        ]
        Path(file).write_text(json.dumps({"rows": rows}), "utf-8")


def _row(name: str, ratios: list[float], target: float) -> dict[str, Any]:
    middle = median(ratios)
    figures = {"median": middle, "min": min(ratios), "max": max(ratios)}
    return {"name": name, **figures, "target": target, "holds": middle <= target}


if __name__ == "__main__":
    main()
