#!/usr/bin/env bash
# torch 2.15.0: on the CPU, eager Conv3d takes longer for one clip than for two.
#
# Expected: a convolution of one clip takes half the time of two, as Conv2d does.
# Seen: for a batch of one, Conv3d with a kernel up to 3x3x3 is computed by `slow_conv3d` (im2col and a matrix product),
# from two on by oneDNN. A 3x3x3 convolution of one clip takes 1.6 to 2.5 times as long as that of two, so a latency
# that is measured with one clip is that of another kernel than the throughput's. On one thread, kernels with H = W = 1 (1x1x1,
# and 3x1x1 of factorised convolutions) are computed by `slow_conv3d` up to 15 clips; Conv2d takes oneDNN for one picture.
# (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import time

import torch
from torch import nn

torch.set_num_threads(1)


def backend(conv: nn.Module, clip: torch.Tensor) -> str:
    ndim = clip.ndim - 2
    ones, none = [1] * ndim, [0] * ndim
    chosen = torch._C._select_conv_backend(clip, conv.weight, conv.bias, ones, none, ones, False, none, 1, None)
    return chosen.name


def seconds(conv: nn.Module, clip: torch.Tensor) -> float:
    """The least CPU time of seven passes."""
    times = []
    for _ in range(7):
        started = time.process_time()
        conv(clip)
        times.append(time.process_time() - started)
    return min(times)


conv = nn.Conv3d(64, 64, 3, padding=1)
one, two = torch.randn(1, 64, 8, 28, 28), torch.randn(2, 64, 8, 28, 28)
with torch.inference_mode():
    ratio = seconds(conv, one) / seconds(conv, two)
temporal, flat = nn.Conv3d(64, 64, (3, 1, 1)), nn.Conv2d(64, 64, 3)
print(f"3x3x3: one clip by {backend(conv, one)}, two by {backend(conv, two)}; one takes {ratio:.2f} times as long as two")
kernels = {clips: backend(temporal, torch.empty(clips, 64, 8, 28, 28)) for clips in (1, 2, 15, 16)}
print(f"3x1x1 on one thread, by clips: {kernels}")
print(f"3x3 of one picture: {backend(flat, torch.empty(1, 64, 28, 28))}")
assert backend(conv, one) == "Slow3d" and backend(conv, two) == "Mkldnn", "torch has changed"
assert ratio > 1, "torch has changed: one clip is now faster than two"
assert kernels == {1: "Slow3d", 2: "Slow3d", 15: "Slow3d", 16: "Mkldnn"}, "torch has changed"
assert backend(flat, torch.empty(1, 64, 28, 28)) == "Mkldnn", "torch has changed"
PYTHON
