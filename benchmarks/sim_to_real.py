"""From simulated to real: networks trained on `figures` alone, evaluated on the Weizmann classes that it shares.

    STAGEDKD_TEST_DATA=... python benchmarks/sim_to_real.py [FOLDER]

No real clip is trained on, and nothing is chosen by these figures. `jump` is Weizmann's pjump, jumping in one place.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from stagedkd import load_spec, run
from stagedkd.data.address import Address
from stagedkd.data.decode import decode
from stagedkd.data.layouts import list_clips
from stagedkd.data.source import VideoClips, VideoFiles
from stagedkd.data.views import Video
from stagedkd.plan.runtime import load_runtime
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.report.statistics import wilson
from stagedkd.spec.schema import Clip, Csv
from stagedkd.stages.networks import load_network
from stagedkd.train.evaluate import predict

SPEC = """\
# Figures of many looks, so that a real person may be one more. 8 frames over 2 seconds.
data:
  kind: figures
  classes: [walk, run, jump, jack, wave1, wave2, bend]
  train: 2100
  val: 350
  test: 7
  noise: 0.05
  camera: 0.05
  domain: {palette: any, background: clutter, viewpoint: 25, blur: 0.01, line: 1.3}
clip: {frames: 8, size: 32}
augment: {crop: 0.6, jitter: 0.3, hue: 0.1}
labels: {clean: 0.2}
train: {batch: 30, lr: 2e-3, weight_decay: 0.05, warmup_epochs: 1}
teacher: {arch: resnet3d, width: 16, blocks: [1, 1, 1], labels: all, epochs: 20}
student: {arch: resnet3d, width: 8, blocks: [1, 1, 1], epochs: 20}
recipe: kd
control: ce
"""
WEIZMANN = {
    "walk": "walk",
    "run": "run",
    "pjump": "jump",
    "jack": "jack",
    "wave1": "wave1",
    "wave2": "wave2",
    "bend": "bend",
}
SEEN = Clip(frames=8, sampling="time", rate=4, size=32, resize=32)  # the simulator's two seconds


def main() -> None:
    root = Path(os.environ.get("STAGEDKD_TEST_DATA", "../shared/data")).resolve()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sim_to_real"))
    (folder / "specs").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").touch()
    (folder / "specs" / "figures.yaml").write_text(SPEC, "utf-8")
    spec = load_spec(folder / "specs" / "figures.yaml")
    outcome = run(spec, load_runtime(folder, threads=2))
    classes = spec.data.classes
    assert isinstance(classes, tuple)
    listed = list_clips(Csv(kind="csv", path="weizmann/clips.csv"), root)
    entries = [e for e in listed.entries if e.label in WEIZMANN]
    shapes = [decode(Address.read(listed.root, e.path), SEEN.shorter_side) for e in entries]
    sizes = [s.frames_THWC.shape for s in shapes]
    videos = [Video(n, high, wide, s.footage.times) for (n, high, wide, _), s in zip(sizes, shapes, strict=True)]
    source = VideoClips(
        VideoFiles(listed.root, SEEN.shorter_side), [e.path for e in entries], videos, SEEN, torch.device("cpu")
    )
    truth = np.array([classes.index(WEIZMANN[e.label]) for e in entries])
    print(f"{len(entries)} real clips of {len(classes)} classes; chance {100 / len(classes):.1f}%")
    for name in ("teacher", "student", "control-ce"):
        work = outcome.plan.stage(name).work
        assert isinstance(work, TeachWork | DistillWork)
        network = load_network(outcome.artifacts[name], work.arch, len(classes), folder)
        scores = predict(network, source, np.arange(len(entries)), 30, 4, 1, None, lambda *_: None)
        right = scores.argmax(1) == truth
        low, high = wilson(int(right.sum()), len(right))
        simulated = outcome.artifacts[f"evaluate-{name}"].manifest.metrics["top1"]
        each = ", ".join(f"{c} {right[truth == i].mean():.0%}" for i, c in enumerate(classes))
        print(f"{name:<11} simulated {simulated:.1%}  real {right.mean():.1%} [{low:.1%}, {high:.1%}]  {each}")


if __name__ == "__main__":
    main()
