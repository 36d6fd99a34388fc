"""What a single frame tells, and what needs motion: a small network over whole clips, over clips with shuffled frames,
and over one frame of each, on noise textures of both families.

    python benchmarks/motion.py [--clips 2000] [--epochs 8] [--seeds 1]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from stagedkd.data.draws import permutation
from stagedkd.data.simulate import render
from stagedkd.data.simulate.base import label_of
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Domain, Simulated

WAYS = ("whole", "shuffled", "one frame")


def small_cnn(classes: int, frames: int) -> nn.Module:
    """A 3-D CNN that keeps the frame rate; over one frame a 2-D one."""
    deep = 3 if frames > 1 else 1

    def block(inside: int, out: int, side: int, stride: int) -> nn.Module:
        conv = nn.Conv3d(
            inside, out, (deep, side, side), (1, stride, stride), (deep // 2, side // 2, side // 2), bias=False
        )
        return nn.Sequential(conv, nn.BatchNorm3d(out), nn.ReLU())

    body = block(1, 24, 5, 1), block(24, 32, 3, 2), block(32, 32, 3, 2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, classes))


def accuracy(
    data: Simulated, how: str, frames: int, size: int, train: int, test: int, epochs: int, seed: int = 0
) -> float:
    """Test accuracy of a small network that sees clips whole, with shuffled frames, or one frame of each."""
    torch.manual_seed(seed)
    numbers = np.arange(train + test)
    made = render(numbers, data, "train", frames, size, torch.device("cpu"))
    pixels = made.float().mean(1, keepdim=True) / 255
    pixels = (pixels - pixels.mean()) / pixels.std()
    if how == "one frame":
        pixels = pixels[:, :, frames // 2 : frames // 2 + 1]
    if how == "shuffled":
        order = torch.stack([torch.from_numpy(permutation(frames, 9, int(n))) for n in numbers])
        pixels = pixels.gather(2, order[:, None, :, None, None].expand_as(pixels))
    labels = torch.from_numpy(label_of(numbers, data))
    network = small_cnn(len(class_names(data)), pixels.shape[2])
    update = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.01)
    steps = epochs * (train // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(update, 1e-2, steps)
    for _ in range(epochs):
        for rows in torch.randperm(train).split(32)[: train // 32]:
            update.zero_grad()
            nn.functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
            update.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in pixels[train:].split(64)])
    return float((found == labels[train:]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    thick = Domain(line=2.0)
    sets: dict[str, tuple[Simulated, int, int]] = {
        "shapes, 2 pairs": (simulated("shapes", ("right", "left", "down", "up"), thick), 8, 16),
        "shapes, 5 pairs": (simulated("shapes", 10, thick), 8, 16),
        "figures, sit_down and stand_up": (simulated("figures", ("sit_down", "stand_up"), thick), 8, 32),
        "figures, all 12": (simulated("figures", 12, thick), 8, 32),
    }
    print(f"{options.clips} clips, {options.epochs} epochs, {options.seeds} seeds; accuracy in %: mean (least to most)")
    for name, (data, frames, size) in sets.items():
        started, row = time.monotonic(), list[str]()
        for how in WAYS:
            sizes = frames, size, options.clips, 600, options.epochs
            found = [100 * accuracy(data, how, *sizes, seed) for seed in range(options.seeds)]
            row.append(f"{how} {sum(found) / len(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        chance = 100 / len(class_names(data))
        print(f"{name:<32} chance {chance:.1f}  {'  '.join(row)}  {time.monotonic() - started:.0f} s", flush=True)


def simulated(kind: str, classes: object, domain: Domain) -> Simulated:
    fields = {"kind": kind, "classes": classes, "texture": "noise", "noise": 0.0, "domain": domain}
    return Simulated.model_validate(fields)


if __name__ == "__main__":
    main()
