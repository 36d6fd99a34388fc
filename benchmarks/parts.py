"""Each part of the method at work: one small run, and the same run without the part; what differs between the two.

    python benchmarks/parts.py [work folder]

For each part one line or a few: losses by phase (substages), shares and correlation (pairing), sizes (cascade), labels
(refinement, judged by the hidden truth, which no rule sees), distances (feature distributions). Accuracies on
validation stand below; with one seed they say nothing about which part is worth its compute.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagedkd.experiment.run import Outcome, run_experiment
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_experiment
from stagedkd.stages.context import Silent
from stagedkd.stages.tables import read_table

SPEC = """\
data: {kind: shapes, classes: 4, train: 400, val: 200, test: 32}
clip: {frames: 8, size: 16}
augment: {crop: 1.0, jitter: 0.1}
labels: {clean: 0.2, noisy: 0.8, noise: {kind: symmetric, rate: 0.4}}
train: {batch: 32, lr: 1e-2, warmup_epochs: 1}
teacher: {arch: resnet3d, width: 12, blocks: [1, 1, 1], epochs: 20}
cascade: [0.4]
refine: {kind: noise_model, rounds: 2, folds: 3}
student: {arch: resnet3d, width: 4, blocks: [1, 1, 1], substages: [[stem, layer1], [layer2], [layer3]], epochs: 14}
distill:
  pairing: correlation
  phases:
    grow: {substages: one_by_one, epochs: 2, train: {warmup_epochs: 0}, losses: {gaussian_w2: 1.0}}
    joint: {losses: {ce: 0.1, pseudo: 0.5, kd: {weight: 0.9, temperature: 4}, gaussian_w2: 0.1}}
grid:
  axes:
    $without:
      nothing: {}
      substages: {distill: {phases: {grow: {$delete: true}}}}
      correlation: {distill: {pairing: auto}}
      cascade: {cascade: []}
      refinement: {refine: null, distill: {phases: {joint: {losses: {pseudo: {$delete: true}}}}}}
      distributions: {distill: {phases: {grow: {$delete: true}, joint: {losses: {gaussian_w2: 1.0e-6}}}}}
      logits:
        distill:
          phases: {grow: {$delete: true}, joint: {losses: {$replace: {gaussian_w2: 1.0, ce: 1.0e-6, pseudo: 1.0e-6}}}}
"""


def main(folder: Path) -> None:
    (folder / "specs").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    path = folder / "specs" / "parts.yaml"
    path.write_text(SPEC, "utf-8")
    outcome = run_experiment(load_experiment(path), load_runtime(folder), Silent())
    for error in outcome.failed.values():
        raise error
    cells = {name.removeprefix("without="): cell for name, cell in outcome.finished.items()}
    full = cells["nothing"]
    substages(full, cells["substages"])
    pairing(full, cells["correlation"])
    cascade(full, cells["cascade"])
    labels(full)
    distributions(cells["logits"], cells["distributions"])
    print("\nvalidation top-1 of the student, without:")
    for name, cell in cells.items():
        print(f"  {name:<13} {100 * metrics(cell, 'evaluate-student')['top1']:.1f}%")


def metrics(cell: Outcome, stage: str) -> dict[str, Any]:
    """The metrics of a stage."""
    return dict(cell.artifacts[stage].manifest.metrics)


def epochs(cell: Outcome, stage: str) -> list[dict[str, Any]]:
    """The events at the ends of the epochs of a stage."""
    path = cell.artifacts[stage].folder / "events.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for row in rows if row["event"] == "epoch"]


def substages(full: Outcome, without: Outcome) -> None:
    """Substages are learned one by one, then combined: the distance of each, and where the joint phase begins."""
    print("substages: gaussian_w2 of each grow phase, first and last epoch; then of the first joint epoch")
    rows = epochs(full, "student")
    for phase in dict.fromkeys(row["phase"] for row in rows):
        of_phase = [row["losses"]["gaussian_w2"] for row in rows if row["phase"] == phase]
        if phase != "joint":
            print(f"  {phase}: {of_phase[0]:.3f} -> {of_phase[-1]:.3f}")
    first = [joint(epochs(cell, "student"))[0]["losses"]["gaussian_w2"] for cell in (full, without)]
    print(f"  joint begins at {first[0]:.3f}; without grow phases at {first[1]:.3f}")


def joint(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] == "joint"]


def pairing(full: Outcome, without: Outcome) -> None:
    """Substages are matched by their correlation: the shares used, and the correlation before and after."""
    found = json.loads(full.artifacts["student"].file("correlation.json").read_text("utf-8"))
    print("\ncorrelation: shares of the student's substages (rows) in each teacher substage (columns), joint phase")
    rows = [row["shares"] for row in found["mixtures"] if row["phase"] == "joint"]
    for name, shares in (("first epoch", rows[0]), ("last epoch", rows[-1])):
        print(f"  {name}: {_matrix(shares)}")
    for name in ("before", "after"):
        print(f"  CKA {name}: {_matrix(found[name])}")
    other = json.loads(without.artifacts["student"].file("correlation.json").read_text("utf-8"))
    print(f"  CKA after, one to one: {_matrix(other['after'])}")


def _matrix(rows: list[list[float | None]]) -> str:
    return "; ".join(" ".join("-" if v is None else f"{v:.2f}" for v in row) for row in rows)


def cascade(full: Outcome, without: Outcome) -> None:
    """Knowledge goes down by sizes: the networks of the cascade, and the distance of logits that each hop leaves."""
    print("\ncascade: parameters, validation top-1, and kd at the end of each hop")
    for name, cell in (("with", full), ("without", without)):
        for network in ("teacher", "assistant-1", "student"):
            if f"evaluate-{network}" not in cell.artifacts:
                continue
            found = metrics(cell, f"evaluate-{network}")
            kd = "" if network == "teacher" else f", kd {joint(epochs(cell, network))[-1]['losses']['kd']:.3f}"
            print(f"  {name:<8} {network:<12} {found['params']:>7,} {100 * found['top1']:5.1f}%{kd}")


def labels(full: Outcome) -> None:
    """Labels are refined: how many change, and how many are right before and after."""
    print("\nrefined labels: the labels of the training clips, against the hidden truth")
    table = read_table(full.artifacts["labels"].read("labels.parquet"))
    clips, given = np.array(table["clip"]), np.array(table["label"])
    truth = np.array(read_table(full.artifacts["data"].read("truth.parquet"))["label"])[clips]
    print(f"  given: {_right(given, truth, np.ones(len(given), bool))}")
    for name in sorted(name for name in full.artifacts if name.startswith("refine-")):
        refined = read_table(full.artifacts[name].read("refined.parquet"))
        posterior, accepted = np.array(refined["posterior"]), np.array(refined["accepted"], bool)
        best = posterior.argmax(1)
        print(f"  {name}: {int((best != given).sum())} labels differ from the given ones")
        print(f"    all: {_right(best, truth, np.ones(len(best), bool))}; accepted: {_right(best, truth, accepted)}")


def _right(labels_n: npt.NDArray[Any], truth_n: npt.NDArray[Any], which_n: npt.NDArray[Any]) -> str:
    return f"{int((labels_n == truth_n)[which_n].sum())} of {int(which_n.sum())} right"


def distributions(alone: Outcome, without: Outcome) -> None:
    """Distributions of features come closer: the distance at the end with this loss alone, and where it has no say. Its
    projectors learn in both, since AdamW does not heed the scale of a loss."""
    print("\nfeature distributions: gaussian_w2 at the first and the last epoch of the joint phase, no grow phases")
    for name, cell in (("this loss alone", alone), ("the other losses, this one at weight 1e-6", without)):
        rows = [row["losses"]["gaussian_w2"] for row in joint(epochs(cell, "student"))]
        print(f"  {name}: {rows[0]:.3f} -> {rows[-1]:.3f}")


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    began = time.monotonic()
    main(place)
    print(f"\n{time.monotonic() - began:.0f} s; artifacts in {place}")
