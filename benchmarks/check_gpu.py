"""Everything that needs a GPU, in one command and under ten minutes: `make check-gpu`.

The quickstart; bf16, fp16 and torch.compile; every network forward and backward once; equal pixels and losses on CPU
and GPU. `--device cpu` runs the same code without a GPU, small, to see that the script itself is sound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from steps import SIZES, Sides, timed

from stagedkd import load_spec, losses, report, run
from stagedkd.data.simulate import render
from stagedkd.models.network import channels_last
from stagedkd.models.torchvision_video import torchvision_video
from stagedkd.models.tsm import tsm
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.schema import Domain, Simulated
from stagedkd.spec.schema.networks.torchvision import ZOO
from stagedkd.spec.schema.networks.tsm import TSM

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["teacher.epochs=4", "distill.phases.joint.epochs=3", "cascade=[]"]


def quickstart(
    device: str, overrides: list[str], compiled: bool = False, name: str = "quickstart", at_least: float = 0.3
) -> str:
    """Run a spec in a store of its own; give accuracies and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = load_runtime(
            ROOT, device=device, store=Path(folder) / "store", results=Path(folder) / "results", compile=compiled
        )
        started = time.monotonic()
        outcome = run(load_spec(ROOT / "specs" / f"{name}.yaml", overrides), runtime)
        results = report(outcome.plan, runtime)
        seconds = time.monotonic() - started
    tops = ", ".join(f"{n.name} {100 * n.top1:.1f}%" for n in results.networks)
    assert results.teacher.top1 > at_least, tops
    return f"{tops}; {seconds:.0f} s"


def every_network(device: str) -> str:
    """Forward and backward of each torchvision network, with a step's memory."""
    rows: list[str] = []
    for arch in ZOO if device != "cpu" else ("r3d_18",):
        frames, size = ZOO[arch].input or (16, 112)
        frames, size = (frames, size) if device != "cpu" else (4, 32)
        network = torchvision_video(arch, 10).to(device).train()
        clip = torch.randn(2, 3, frames, size, size, device=device)
        started = time.monotonic()
        with torch.autocast(device, torch.bfloat16):
            maps, logits = network.run(clip, taps=tuple(run[-1] for run in ZOO[arch].substages))
        assert logits is not None and logits.isfinite().all() and len(maps) == 4
        logits.float().square().mean().backward()
        missing = [name for name, p in network.net.named_parameters() if p.grad is None]
        assert not missing, f"{arch}: no gradient for {missing[:3]}"
        rows.append(f"{arch} {time.monotonic() - started:.2f} s")
    for backbone in TSM if device != "cpu" else ("mobilenet_v3_small",):
        started = time.monotonic()
        network = tsm(backbone, 0.125, 10).to(device).train()
        channels_last(network)
        logits = network(torch.randn(2, 3, 8, 64, 160, device=device))  # a view that is not square
        logits.square().mean().backward()
        rows.append(f"tsm {backbone} {time.monotonic() - started:.2f} s")
    return ", ".join(rows)


def same_pixels(device: str) -> str:
    """Simulated clips differ by at most one step of 255 between CPU and device."""
    worst = 0
    for kind in ("shapes", "figures"):
        for texture in ("plain", "noise"):
            looks = Domain(palette="any", background="clutter", blur=0.02, viewpoint=30)
            data = Simulated.model_validate(
                {
                    "kind": kind,
                    "texture": texture,
                    "distractors": 2,
                    "occlusion": 0.1,
                    "camera": 0.2,
                    "drop": 0.2,
                    "domain": looks,
                }
            )
            pair = (render(np.arange(96), data, "train", 8, 32, torch.device(d)).cpu().int() for d in ("cpu", device))
            here, there = pair
            worst = max(worst, int((here - there).abs().max()))
    assert worst <= 1, worst
    return f"largest difference {worst}/255"


def same_losses(device: str) -> str:
    """Every loss, CPU against device, float32, without TF32."""
    worst: dict[str, float] = {}
    names = [name for name in losses.__all__ if not name.startswith("pool_to") and name != "CRD"]
    for name in names:
        torch.manual_seed(0)
        values, drawn = arguments(name), torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
        found: list[torch.Tensor] = []
        for where in ("cpu", device):
            extra = {"directions": drawn.to(where)} if name == "sliced_w2" else {}
            found.append(getattr(losses, name)(*(_moved(v, where) for v in values), **extra).cpu())
        worst[name] = float((found[0] - found[1]).abs() / found[0].abs())
    torch.manual_seed(0)
    crd = losses.CRD(clips=64, student_channels=8, teacher_channels=6).eval()
    feats, numbers = (torch.randn(16, 8, 2, 3, 3), torch.randn(16, 6, 2, 3, 3)), torch.arange(16)
    found = []
    for where in ("cpu", device):
        torch.manual_seed(1)
        found.append(crd.to(where)(*(f.to(where) for f in feats), numbers.to(where)).detach().cpu())
    worst["crd"] = float((found[0] - found[1]).abs() / found[0].abs())
    name = max(worst, key=lambda key: worst[key])
    assert worst[name] < 1e-4, worst
    return f"{len(worst)} losses, largest relative difference {worst[name]:.1e} ({name})"


def arguments(name: str) -> list[Any]:
    """What a loss is called with."""
    logits, maps = torch.randn(2, 16, 10), torch.randn(2, 16, 8, 4, 6, 6)
    labels = torch.randint(-1, 10, (16,))
    match name:
        case "ce":
            return [logits[0], labels]
        case "dkd":
            return [*logits, labels]
        case "pseudo":
            return [logits[0], logits[1].softmax(1), labels > 3]
        case "fixmatch":
            return [logits[0], 9 * logits[1]]
        case "kd" | "dist" | "logit_std":
            return [*logits]
        case "stage_cka":
            return [[maps[0], maps[0, :, :4]], [maps[1], maps[1, :, 2:]]]
        case "cka":
            return [maps[0].flatten(1), maps[0, :, :5].flatten(1)]
        case _:
            return [*maps]


def _moved(value: Any, device: str) -> Any:
    return [part.to(device) for part in value] if isinstance(value, list) else value.to(device)


def step_ratio(device: str) -> str:
    """The time of a bare loop by that of our joint step, both compiled; the target is 0.97 or more."""
    where, rows, rounds = torch.device(device), list[str](), 12 if device != "cpu" else 2
    for size in SIZES if device != "cpu" else ("toy",):
        both = Sides(size, where, compiled=device != "cpu")
        bare = [timed(both.step_bare, where) for _ in range(rounds)]
        ours = both.seconds_of_ours(rounds)
        rows.append(f"{size} {median(bare[rounds // 4 :]) / median(ours[rounds // 4 :]):.2f}")  # the first ones compile
    return "bare loop / joint step: " + ", ".join(rows)


def whole_method(device: str) -> str:
    """The full method on weak labels with every option that has code of its own on the device."""
    options = [
        "teacher.epochs=6",
        "student.epochs=5",
        "refine.rounds=1",
        "refine.folds=2",
        "refine.by=both",
        "distill.normalize=first_epoch",
        "distill.guides=dense",
        "distill.drop=0.3",
        "distill.pair_weights=trust",
        "distill.phases.joint.losses={crd: 0.1, stage_cka: 0.1, fixmatch: 0.1, sp: 1, at: 1, review: 0.1}",
    ]
    return quickstart(device, options, name="weak_labels", at_least=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here: make check-gpu needs one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}", flush=True)
    short = SHORT if device == "cuda" else [*SHORT, "data.train=320", "data.val=80", "teacher.epochs=12"]
    checks: dict[str, Callable[[], str]] = {
        "pixels": lambda: same_pixels(device),
        "losses": lambda: same_losses(device),
        "networks": lambda: every_network(device),
        "step": lambda: step_ratio(device),
        "quickstart": lambda: quickstart(device, [] if device == "cuda" else short),
        "bf16": lambda: quickstart(device, [*short, "train.precision=bf16"]),
        "method": lambda: whole_method(device),
        "compile": lambda: quickstart(device, short, compiled=True),
    }
    if device == "cuda":
        checks["fp16"] = lambda: quickstart(device, [*short, "train.precision=fp16"])
    failed = 0
    for name, check in checks.items():
        started = time.monotonic()
        try:
            said = check()
        except Exception as error:  # every check is told of, whatever fails
            failed, said = failed + 1, f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:<11} {said} [{time.monotonic() - started:.0f} s]", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
