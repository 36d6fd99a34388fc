"""What int8 costs in accuracy: quantised after training by each runtime, and fine-tuned for int8 (student.quantise).

    python benchmarks/quantise.py [SEEDS [STUDENT]]    STUDENT: resnet3d (default) or tsm, of mobilenet_v3_small

Each seed trains one student in float32, and the same student with a last phase for int8; both are exported to ONNX and
OpenVINO in int8. Top-1 is that of the validation clips (none of the test split), as the runtime computes it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stagedkd import load_spec, report, run
from stagedkd.deploy.export.write import Wish, export_student
from stagedkd.deploy.student import find_student
from stagedkd.plan.runtime import Runtime

SPEC = """\
data: {kind: shapes, classes: 8, train: 800, val: 800, test: 8}
clip: {frames: 8, size: SIZE, views: 4}
labels: {clean: 0.5}
train: {batch: 32, lr: 1e-2}
teacher: {arch: resnet3d, width: 16, blocks: [1, 1, 1], labels: all, epochs: 12}
student: STUDENT
distill: {phases: {joint: {losses: {ce: 0.2, kd: {weight: 0.8, temperature: 4}}}}}
seed: SEED
"""
STUDENTS = {
    "resnet3d": ("24", "{arch: resnet3d, width: 4, blocks: [1, 1, 1], epochs: 20QUANTISE}"),
    "tsm": ("48", "{arch: tsm, backbone: mobilenet_v3_small, epochs: 20QUANTISE}"),
}


def main(seeds: int, student: str) -> None:
    """Print a row for each seed."""
    for seed in range(seeds):
        row: list[str] = []
        for kind, setting in (("float32", ""), ("fine-tuned", ", quantise: int8")):
            with tempfile.TemporaryDirectory() as folder:
                size, network = STUDENTS[student]
                text = SPEC.replace("STUDENT", network).replace("SIZE", size).replace("SEED", str(seed))
                text = text.replace("QUANTISE", setting)
                (path := Path(folder) / "specs" / "int8.yaml").parent.mkdir()
                path.write_text(text, "utf-8")
                runtime = Runtime(root=folder, device="cpu", threads=1)
                results = report(run(load_spec(path), runtime).plan, runtime)
                rates = {each.name: each.top1 for each in results.networks}
                row += [f"teacher {100 * rates['teacher']:.1f}"] if not setting else []
                row.append(f"{kind} {100 * rates['student']:.1f}")
                found = find_student(Path(folder) / "results" / "int8")
                for form in ("onnx", "openvino"):
                    wish = Wish(form, int8=True, agreement=0.0)
                    made = export_student(found, wish, Path(folder) / form, runtime, lambda _: None)
                    compared = made.compared
                    assert compared is not None and compared.own is not None
                    low, high = compared.own.interval
                    interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
                    row.append(f"{form} int8 {100 * compared.own.top1:.1f} {interval}, same {compared.agreement:.1%}")
        print(f"{student}, seed {seed}: " + "; ".join(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2] if len(sys.argv) > 2 else "resnet3d")
