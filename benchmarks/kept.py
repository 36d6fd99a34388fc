"""What kept outputs of the guides save, and what finite views cost.

    python benchmarks/kept.py hops [ROUNDS]            a whole hop, kept / live, in alternating CPU time
    python benchmarks/kept.py views [EPOCHS [SEEDS]]   top-1 with 1, 4, 16 and endless views of each clip, on two tasks

A hop is timed from its teacher's file to the student's, its kept outputs filled within it. `views` takes a fraction of
the tasks' own epochs where EPOCHS is small, so its figures are only compared with each other.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stagedkd import load_spec, report, run
from stagedkd.plan.runtime import Runtime

REPO = Path(__file__).resolve().parent.parent
SMALL = """\
data: {kind: shapes, classes: 8, train: 1200, val: 8, test: 8}
clip: {frames: 8, size: 24}
augment: {crop: 1.0, jitter: 0.0}
labels: {clean: 0.1}
train: {batch: 32, lr: 4e-3}
teacher: {arch: resnet3d, width: 16, blocks: [1, 1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1, 1], substages: [[stem, layer1], [layer2], [layer3]], epochs: 23}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0}}
    joint: {losses: {ce: 0.1, kd: {weight: 0.9, temperature: 4}, gaussian_w2: 0.02}}
"""
LARGE = """\
data: {kind: shapes, classes: 8, train: 48, val: 8, test: 8}
clip: {frames: 8, size: 56}
augment: {crop: 1.0, jitter: 0.0}
labels: {clean: 0.5}
train: {batch: 8, lr: 1e-3}
teacher: {arch: r3d_18, labels: all, epochs: 1}
student:
  arch: resnet3d
  width: 16
  blocks: [1, 1, 1, 1]
  substages: [[stem, layer1], [layer2], [layer3], [layer4]]
  epochs: 24
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0}}
    joint: {losses: {ce: 0.1, kd: {weight: 0.9, temperature: 4}, gaussian_w2: 0.02}}
"""
VIEWED = """\
data: {kind: KIND, classes: 8, train: 400, val: 400, test: 8}
clip: {frames: 8, size: 24, views: VIEWS}
augment: {crop: 0.6, jitter: 0.2}
labels: {clean: 0.25}
train: {batch: 32, lr: 1e-2, warmup_epochs: 1}
seed: SEED
teacher: {arch: resnet3d, width: 16, blocks: [1, 1, 1], labels: all, epochs: EPOCHS}
student: {arch: resnet3d, width: 8, blocks: [1, 1, 1], substages: [[stem, layer1], [layer2], [layer3]], epochs: EPOCHS}
distill:
  phases: {joint: {losses: {ce: 0.1, kd: {weight: 0.9, temperature: 4}, gaussian_w2: 0.02}}}
"""


def hop_seconds(root: Path, text: str, cache_teacher: str, number: int) -> float:
    """CPU seconds of the hop alone, in a project whose other stages are in the store."""
    path = root / "specs" / "hop.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.replace("distill:", f"seed: {number}\ndistill:"), "utf-8")
    runtime = Runtime(root=str(root), device="cpu", threads=1, cache=f"cache-{number}", cache_teacher=cache_teacher)  # pyright: ignore
    started = time.process_time()
    outcome = run(load_spec(path), runtime)
    assert "student" in outcome.ran
    return time.process_time() - started


def hops(rounds: int) -> None:
    for name, text in (("the quickstart's size", SMALL), ("r3d_18 -> 0.9 M, 8x56x56", LARGE)):
        with tempfile.TemporaryDirectory() as folder:
            hop_seconds(Path(folder), text.replace("epochs: 2", "epochs: 1", 0), "off", 0)  # the teacher, and warm-up
            ratios: list[float] = []
            for number in range(1, rounds + 1):
                # each arm has seeds and caches of its own, so that both do all of the work
                live = hop_seconds(Path(folder), text, "off", 2 * number)
                kept = hop_seconds(Path(folder), text, "auto", 2 * number + 1)
                ratios.append(kept / live)
                print(f"  {name}: kept {kept:.1f} s, live {live:.1f} s of CPU, ratio {kept / live:.3f}", flush=True)
            print(f"{name}: kept / live {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def views(epochs: int, seeds: int) -> None:
    for kind in ("shapes", "figures"):
        for count in ("1", "4", "16", "null"):
            rates: list[float] = []
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    values = {"KIND": kind, "VIEWS": count, "EPOCHS": str(epochs), "SEED": str(seed)}
                    text = VIEWED
                    for word, value in values.items():
                        text = text.replace(word, value)
                    (path := Path(folder) / "views.yaml").write_text(text, "utf-8")
                    runtime = Runtime(root=folder, device="cpu", threads=1)
                    results = report(run(load_spec(path), runtime).plan, runtime)
                    rates.append(next(row.top1 for row in results.networks if row.name == "student"))
            name = "endless" if count == "null" else count
            print(f"{kind}: {name} views: top-1 " + ", ".join(f"{100 * rate:.1f}" for rate in rates), flush=True)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    if sys.argv[1] == "hops":
        hops(*(numbers or [3]))
    else:
        views(*(numbers + [16, 1][len(numbers) :]))
