"""What waiting costs: a training step under several spin limits of the OpenMP runtime, quiet and beside a busy process.

    python benchmarks/threads.py [ROUNDS]

A process for each setting trains the same small network; the settings take turns, a few steps each, so that what else
runs on the machine meets all of them. Times are wall time in ms a step; a ratio is the median over the rounds of the
ratio within a round. `before` is what libgomp does when nobody sets a limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import median

STEPS = 6  # of one turn
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
BURN = "while True: pass"


def train(threads: int) -> None:
    """The process of one setting: for each line on stdin, train a few steps and print the ms of a step and the digest
    of the weights."""
    import torch

    from stagedkd.models.resnet3d import ResNet3d

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = ResNet3d(16, (1, 1, 1, 1), "full", 10)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    clip_BCTHW, labels = torch.randn(32, 3, 8, 24, 24), torch.arange(32) % 10
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(clip_BCTHW), labels).backward()
            optimizer.step()
        seconds = (time.perf_counter() - started) / STEPS
        print(json.dumps([1000 * seconds, sum(p.double().sum().item() for p in net.parameters())]), flush=True)


def start(threads: int, settings: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the process of one setting."""
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, __file__, "--train", str(threads)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**environment, **settings})


def take_turns(processes: Mapping[str, subprocess.Popen[str]], rounds: int) -> dict[str, list[float]]:
    """The ms of a step of each setting, by round; the first round warms up and is left out. The order rotates."""
    times: dict[str, list[float]] = {name: [] for name in processes}
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


def ratio(times: Mapping[str, list[float]], name: str, to: str) -> float:
    return median(a / b for a, b in zip(times[name], times[to], strict=True))


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(int(sys.argv[2]))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    processes = {name: start(*setting) for name, setting in SETTINGS.items()}
    quiet = take_turns(processes, rounds)
    load = os.getloadavg()[0]
    burner = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        beside = take_turns(processes, rounds)
    finally:
        burner.kill()
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
    print(f"{rounds} rounds of {STEPS} steps; load average without the busy process {load:.1f}")
    print(f"{'':<12} {'quiet ms':>9} {'min':>7} {'/ before':>9}   {'beside ms':>9} {'min':>7} {'/ one thread':>13}")
    for name in SETTINGS:
        row = f"{name:<12} {median(quiet[name]):9.1f} {min(quiet[name]):7.1f} {ratio(quiet, name, 'before'):9.2f}"
        row += f"   {median(beside[name]):9.1f} {min(beside[name]):7.1f} {ratio(beside, name, 'one thread'):13.2f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
