"""A training step beside a bare PyTorch loop that does the same, and views beside torchvision's, in alternating runs.

    python benchmarks/steps.py [ROUNDS] [--device cuda] [--views]

Large: r3d_18 teaches a student of 0.9 M parameters, clips of 8x56x56. Toy: the sizes of the quickstart. Each joint step
has cross-entropy, Hinton's loss and `gaussian_w2`, AdamW, and the teacher live. The bare loop has the same networks,
layout and losses, written as one would by hand, and reads its loss in every step. Ratios are of CPU time on the CPU,
where other work may run beside it, and of wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stagedkd import losses
from stagedkd.data.source import SimulatedClips
from stagedkd.data.views import Video, View, apply_views, fit_input, layout, train_view
from stagedkd.models.network import Network, channels_last
from stagedkd.models.resnet3d import resnet3d
from stagedkd.models.torchvision_video import torchvision_video
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Augment, Clip, Losses, Simulated, Train
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.feed import Feed
from stagedkd.train.guides import LiveGuide
from stagedkd.train.job import Execution, Job
from stagedkd.train.loop import fit
from stagedkd.train.sinks import open_log

CUT = (("stem", "layer1"), ("layer2",), ("layer3",), ("layer4",))
CLASSES, STEPS = 4, 3
TARGETS = {"large": 1.0, "toy": 1.03}  # of the joint step, on the CPU
TERMS = Losses.model_validate({"ce": 0.1, "kd": 0.9, "gaussian_w2": 0.02})
AUGMENT = Augment(crop=1.0, jitter=0.0, flip=0.0)
SIZES = {  # teacher, student, frames, side, batch
    "large": (
        lambda: torchvision_video("r3d_18", CLASSES),
        lambda: resnet3d(14, (1, 1, 1, 1), "full", CLASSES),
        8,
        56,
        4,
    ),
    "toy": (
        lambda: resnet3d(32, (1, 1, 1, 1), "full", CLASSES),
        lambda: resnet3d(8, (1, 1, 1, 1), "full", CLASSES),
        8,
        24,
        16,
    ),
}


class Sides:
    """Both sides of the comparison, for the same networks, clips and losses."""

    def __init__(self, size: str, device: torch.device, compiled: bool) -> None:
        make_teacher, make_student, frames, side, self.batch = SIZES[size]
        torch.manual_seed(0)
        self.device, self.compiled, self.clip = device, compiled, Clip(frames=frames, size=side)
        self.teacher = self._moved(make_teacher()).eval().requires_grad_(False)
        self.ours, self.bare = self._moved(make_student()), self._moved(make_student())
        clips = self.batch * STEPS
        data = Simulated(kind="shapes", classes=CLASSES, texture="plain")
        self.source = SimulatedClips(data, ["train"] * clips, self.clip, device)
        self.feed = Feed(self.source, np.arange(clips), np.arange(clips) % CLASSES, AUGMENT, 0)
        self.phase = PhaseWork(
            name="joint",
            epochs=1,
            trained=(0, 1, 2, 3),
            frozen=(),
            pairs=((0, 0), (1, 1), (2, 2), (3, 3)),
            head=True,
            losses=TERMS,
            train=Train(batch=self.batch, lr=1e-3),
        )
        self.adapters = [self._adapters().to(device) for _ in range(2)]
        self.pictures = self.source.views(range(clips), 1, 1)[0]
        self.bare_steps = self._bare()

    def _moved(self, network: Network) -> Network:
        network.to(self.device)
        if layout(self.device) == torch.channels_last_3d:
            channels_last(network)
        return network

    def _adapters(self) -> FeatureAdapters:
        names = [run[-1] for run in CUT]
        clip = torch.zeros(2, 3, self.clip.frames, int(self.pictures_side()), int(self.pictures_side()))
        channels: list[dict[int, int]] = []
        for network in (self.ours, self.teacher):
            with torch.no_grad():
                maps = network.eval().run(clip.to(self.device), taps=names)[0]
            channels.append({i: maps[name].shape[1] for i, name in enumerate(names)})
        return FeatureAdapters("pairs", (self.phase,), *channels, clips=self.batch * STEPS)

    def pictures_side(self) -> int:
        """The side of a clip in pixels."""
        return self.clip.size if isinstance(self.clip.size, int) else self.clip.size[0]

    def step_ours(self) -> None:
        """One epoch of our loop."""
        self.seconds_of_ours(1)

    def seconds_of_ours(self, epochs: int) -> list[float]:
        """Train by our loop, which compiles anew in each call, and return the wall time of each epoch."""
        phase = self.phase.model_copy(update={"epochs": epochs, "run_epochs": epochs})
        ends = [time.perf_counter()]

        def note(row: dict[str, Any]) -> None:
            if row["step"] % STEPS == 0:
                ends.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            log = open_log(Path(folder))
            execution = Execution(self.device, Path(folder), log, self.compiled, 1e9, on_step=note)
            guides = (LiveGuide(torch.compile(self.teacher.run) if self.compiled else self.teacher.run),)
            fit(Job(self.ours, None, (phase,), self.feed, execution, guides, self.adapters[0], CUT, CUT))
        return [end - start for start, end in pairwise(ends)]

    def step_bare(self) -> None:
        """As many steps of the bare loop."""
        for _ in range(STEPS):
            next(self.bare_steps)

    def _bare(self) -> Iterator[float]:
        run, teach = self.bare.run, self.teacher.run
        if self.compiled:
            run, teach = torch.compile(run), torch.compile(teach)
        modules = self.adapters[1]
        parameters = [*self.bare.parameters(), *modules.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
        taps, at = tuple(run_[-1] for run_ in CUT), 0
        labels_n = torch.arange(len(self.pictures), device=self.device) % CLASSES
        while True:
            self.bare.train()
            chosen = slice(at % len(self.pictures), at % len(self.pictures) + self.batch)
            at += self.batch
            view = fit_input(self.pictures[chosen], None)
            with torch.no_grad():
                teacher_maps, teacher_BN = teach(view, taps=taps)
            maps, logits_BN = run(view, taps=taps)
            assert logits_BN is not None and teacher_BN is not None
            total = 0.1 * losses.ce(logits_BN, labels_n[chosen]) + 0.9 * losses.kd(logits_BN, teacher_BN)
            for i, name in enumerate(taps):
                projected = modules.projectors[f"{i + 1}-{i + 1}"](maps[name])
                total = total + 0.02 / len(taps) * losses.gaussian_w2(projected, teacher_maps[name])
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            yield total.item()


def timed(do: Callable[[], None], device: torch.device) -> float:
    """Seconds that a call takes: of wall time on a GPU, else of CPU time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def ratios(ours: Callable[[], None], other: Callable[[], None], rounds: int, device: torch.device) -> list[float]:
    """The time of ours by that of the other, by round. The first round warms up; who begins changes by round."""
    found: list[float] = []
    for turn in range(rounds + 1):
        pair = (ours, other) if turn % 2 else (other, ours)
        first, second = (timed(do, device) for do in pair)
        if turn:
            found.append(first / second if pair[0] is ours else second / first)
    return found


def torchvision_views(frames: list[Tensor], views: list[View], side: int) -> Tensor:
    """The same views by torchvision's functionals."""
    clips: list[Tensor] = []
    for picture, view in zip(frames, views, strict=True):
        picture = tv.resized_crop(picture, *view.box, [side, side], antialias=True)
        picture = (tv.horizontal_flip(picture) if view.flip else picture).to(torch.float32) / 255
        picture = tv.adjust_contrast(tv.adjust_brightness(picture, view.brightness), view.contrast)
        clips.append(tv.adjust_saturation(picture, view.saturation).transpose(0, 1))
    return torch.stack(clips)


def views(rounds: int, device: torch.device) -> list[float]:
    """16x112x112 with the default augmentation, eight clips at once: ours by torchvision's functionals."""
    dice, clip, video = np.random.default_rng(0), Clip(frames=16, size=112), Video(16, 128, 171)
    drawn = [train_view(clip, Augment(flip=0.5), 0, epoch, 0, video) for epoch in range(32)]
    picture = torch.from_numpy(dice.integers(0, 256, (16, 128, 171, 3), np.uint8)).permute(0, 3, 1, 2).to(device)
    parts = [drawn[i : i + 8] for i in range(0, 32, 8)]

    def ours() -> None:
        for part in parts:
            apply_views([picture] * 8, part, 112)

    def theirs() -> None:
        for part in parts:
            torchvision_views([picture] * 8, part, 112)

    return ratios(ours, theirs, rounds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--views", action="store_true", help="the views alone")
    parser.add_argument("--json", type=Path, help="write the rows with a target here (benchmarks/speed.py)")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    rows = {"views of 16x112x112 / torchvision's functionals": lambda: views(args.rounds, device)}
    for size in SIZES if not args.views else ():
        both = Sides(size, device, compiled=False)
        name = f"joint step / bare loop, {size}"
        rows[name] = lambda both=both: ratios(both.step_ours, both.step_bare, args.rounds, device)
    written: list[dict[str, Any]] = []
    for name, measure in rows.items():
        found = measure()
        print(f"{name:<50} {median(found):.2f}  [{min(found):.2f}, {max(found):.2f}]", flush=True)
        target = TARGETS.get(name.rpartition(", ")[2])
        if target is not None:
            row = {"name": f"uncached {name}", "median": median(found), "min": min(found), "max": max(found)}
            written.append(row | {"target": target, "holds": median(found) <= target})
    if args.json:
        args.json.write_text(json.dumps({"rows": written}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
