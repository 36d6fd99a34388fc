"""How fast clips come, in one alternating run, and how long training waits for them.

    STAGEDKD_TEST_DATA=... python benchmarks/data.py [ROUNDS]

Real: the Weizmann clips, views for training, from the raw and the JPEG cache, decoded by PyAV, sought by torchcodec.
Simulated: both families, on the CPU, and the GPU where there is one. Waiting: the share of step time spent on batches.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from stagedkd import load_spec, run
from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec
from stagedkd.data.cache_build import open_cache
from stagedkd.data.decode import probe
from stagedkd.data.seek import SeekingFiles, require_torchcodec
from stagedkd.data.simulate import render
from stagedkd.data.source import Reader, VideoClips, VideoFiles
from stagedkd.data.views import Video
from stagedkd.errors import UsageError
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.schema import Augment, Clip, Simulated

REPO = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def readers(root: Path, cache: Path, paths: list[str], side: int) -> dict[str, Reader]:
    """Everything that can give frames, warm."""
    found: dict[str, Reader] = {}
    for form in ("raw", "jpeg"):
        spec = CacheSpec(root, dict.fromkeys(paths, "mark"), side, form)
        found[f"{form} cache"] = open_cache(cache, spec, 2, lambda *_: None, lambda _: None)
    found["PyAV"] = VideoFiles(root, side)
    try:
        require_torchcodec()
        found["torchcodec"] = SeekingFiles(root, side)
    except UsageError as error:
        print(f"no torchcodec: {error.message}")
    return found


def real(root: Path, cache: Path, clip: Clip, rounds: int, device: torch.device) -> None:
    """Clips per second of every reader, rounds in turn, frames only and with the view made on the device."""
    paths = sorted(p.relative_to(root).as_posix() for p in (root / "weizmann").rglob("*.avi"))[::3]
    side = clip.shorter_side
    videos = [Video(n, side, round(side * w / h)) for n, h, w in (probe(Address.read(root, p)) for p in paths)]
    seconds: dict[str, list[float]] = {}
    sources = {
        name: VideoClips(r, paths, videos, clip, device) for name, r in readers(root, cache, paths, side).items()
    }
    for turn in range(rounds + 1):  # the first one warms up
        for name, source in sources.items():
            views = [source.train_view(n, Augment(flip=0.5), 0, turn) for n in range(len(paths))]
            started = time.perf_counter()
            loaded = source.load(range(len(paths)), views)
            between = time.perf_counter()
            source.finish(range(len(paths)), views, loaded)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds.setdefault(name, []).append(between - started)
                seconds.setdefault("the view itself", []).append(time.perf_counter() - between)
    rates = {name: len(paths) / median(found) for name, found in seconds.items()}
    print(f"{clip.frames}x{clip.size}x{clip.size}, clips per second (times PyAV):", flush=True)
    for name, rate in rates.items():
        print(f"  {name:<16} {rate:10,.0f}  {rate / rates['PyAV']:7.1f} x", flush=True)


def simulators(rounds: int) -> None:
    """Clips per second of both families."""
    for device in (CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])):
        for kind in ("shapes", "figures"):
            for frames, size in ((8, 24), (16, 112)):
                data, rates = Simulated.model_validate({"kind": kind}), list[float]()
                for turn in range(rounds + 1):
                    numbers = np.arange(32) + 32 * turn
                    started = time.perf_counter()
                    render(numbers, data, "train", frames, size, device).sum().item()
                    rates += [32 / (time.perf_counter() - started)] if turn else []
                print(
                    f"{kind} {frames}x{size}x{size} on {device.type}: {median(rates):,.0f} clips per second", flush=True
                )


def waiting(root: Path, folder: Path) -> None:
    """Train briefly, and give the share of step time that went into batches, by stage."""
    quick = (REPO / "specs/quickstart.yaml", ["teacher.epochs=4", "student.epochs=6", "cascade=[]"])
    view = "clip={frames: 16, stride: 1, size: 112, resize: 128}"
    large = [view, "recipe=kd", "teacher.epochs=3", "student.epochs=3", "train.batch=10"]
    for name, path, sets in (
        ("quickstart", *quick),
        ("16x112x112, raw cache", REPO / "specs/weizmann.yaml", large),
        ("16x112x112, no cache", REPO / "specs/weizmann.yaml", [*large, "clip.cache=none"]),
    ):
        place = folder / name.replace(" ", "_").replace(",", "")
        place.mkdir()
        outcome = run(load_spec(path, sets), load_runtime(place, data_dir=root, threads=2, workers=2))
        for stage in ("teacher", "student"):
            facts = outcome.artifacts[stage].run or {}
            share = facts["data_seconds"] / facts["train_seconds"]
            print(f"{name}, {stage}: {share:.1%} of {facts['train_seconds']:.0f} s spent on batches", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    root = Path(os.environ.get("STAGEDKD_TEST_DATA", "../shared/data")).resolve()
    torch.set_num_threads(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: list[Callable[[Path], None]] = [
        lambda folder: real(root, folder, Clip(frames=12, stride=2, size=48, resize=56), rounds, device),
        lambda folder: real(root, folder, Clip(frames=16, stride=2, size=112, resize=128), rounds, device),
        lambda _: simulators(rounds),
        lambda folder: waiting(root, folder),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            step(Path(folder))
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "device": device.type}))


if __name__ == "__main__":
    main()
