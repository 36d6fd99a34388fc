"""Where the CPU time of a step goes in the quickstart's trainings, before the work on speed and now.

    python benchmarks/quickstart_profile.py [ROUNDS]

Each side trains specs/quickstart.yaml with fewer epochs, on one thread, in a process of its own; the sides take turns.
The parts of a step are timed by functions that both trees have. CPU time counts little of what else runs.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median

REPO = Path(__file__).resolve().parent.parent
BEFORE = "2af4c27"  # the last commit before the work on speed
PARTS = ("guides", "forward and losses", "backward", "optimizer", "rest of the step", "batches and the loop")
CHILD = r"""
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from stagedkd import load_spec, run
from stagedkd.plan.runtime import Runtime
from stagedkd.stages import distill, refine, teach
from stagedkd.train import loop
from stagedkd.train.guides import LiveGuide

clock, spent, rows = time.process_time, {}, {}


def timed(name, function):
    def call(*args, **kwargs):
        began = clock()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + clock() - began
    return call


def fit(job):
    spent.clear()
    began = clock()
    progress = old_fit(job)
    whole = clock() - began
    steps = progress.total
    step, losses = spent["step"], spent["losses"]
    guides, backward, update = spent.get("guides", 0.0), spent["backward"], spent["optimizer"]
    parts = [guides, losses - guides, backward, update, step - losses - backward - update, whole - step]
    rows[len(rows)] = {"params": sum(p.numel() for p in job.student.parameters()), "distilled": bool(job.guides),
                       "ms": [1000 * part / steps for part in parts], "steps": steps}
    return progress


old_fit = loop.fit
loop.train_step = timed("step", loop.train_step)
loop.step_losses = timed("losses", loop.step_losses)
torch.Tensor.backward = timed("backward", torch.Tensor.backward)
torch.optim.AdamW.step = timed("optimizer", torch.optim.AdamW.step)
LiveGuide.outputs = timed("guides", LiveGuide.outputs)
for module in (distill, teach, refine):
    if hasattr(module, "fit"):
        module.fit = fit
root = Path(sys.argv[1])
more = {"jobs": 1} if "jobs" in Runtime.model_fields else {}
run(load_spec(root / "specs" / "quickstart.yaml"), Runtime(root=str(root), device="cpu", threads=1, **more))
print(json.dumps(list(rows.values())))
"""


def measure(tree: Path) -> list[dict[str, object]]:
    """Train with the stagedkd of a tree. Returns a row for each training."""
    with tempfile.TemporaryDirectory() as folder:
        text = (tree / "specs" / "quickstart.yaml").read_text("utf-8")
        for old, new in (("labels: all, epochs: 24", "labels: all, epochs: 4"), ("  epochs: 20", "  epochs: 9")):
            assert old in text, f"specs/quickstart.yaml of {tree} has no '{old}'"
            text = text.replace(old, new)
        text = "\n".join(line for line in text.splitlines() if not line.startswith(("tune", "control"))) + "\n"
        (spec := Path(folder) / "specs" / "quickstart.yaml").parent.mkdir()
        spec.write_text(text, "utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = (sys.executable, "-c", CHILD, folder)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def main(rounds: int) -> None:
    """Print a table of milliseconds a step, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(("git", "-C", str(REPO), "archive", BEFORE), capture_output=True, check=True).stdout
        before = Path(folder) / "before"
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(before, filter="data")
        seen: dict[str, list[list[dict[str, object]]]] = {"before": [], "now": []}
        for _ in range(rounds):
            for name, tree in (("before", before), ("now", REPO)):
                seen[name].append(measure(tree))
    print("ms of CPU time a step\n| training | | " + " | ".join(PARTS) + " | whole |")
    print("|---" * (len(PARTS) + 3) + "|")
    for number, training in enumerate(("teacher", "hop to the assistant", "hop to the student")):
        for name in ("before", "now"):
            parts = [median(each[number]["ms"][i] for each in seen[name]) for i in range(len(PARTS))]  # pyright: ignore
            row = " | ".join(f"{part:.1f}" for part in parts)
            print(f"| {training} | {name} | {row} | {sum(parts):.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
