#!/usr/bin/env bash
# torch 2.15.0: `weight.contiguous(memory_format=torch.channels_last)` does not lay out depthwise and pointwise weights
# channels last, and on the CPU their convolutions then take up to several times as long on small maps.
#
# Expected: a network whose weights are laid out one by one, because `Module.to(memory_format=...)` refuses a network of
# 2-D and 3-D convolutions, computes as fast as one laid out by `Module.to`.
# Seen: a weight of (C, 1, 5, 5) or (C, D, 1, 1) is contiguous in both layouts, so `contiguous` returns it with the
# strides of the standard one; `to` gives it those of channels last. On maps of one position, which are contiguous in both
# layouts, too, torch goes by the strides of the weight: a step of a mobilenet_v3_small on frames of 32 x 32 takes 1.7 to
# 2.4 times as long with `contiguous`. (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchvision==0.29.2 numpy
"$folder/env/bin/python" - <<'PYTHON'
from time import perf_counter

import torch
from torchvision.models import mobilenet_v3_small

torch.set_num_threads(1)
LAST = torch.channels_last
LAID_OUT = {
    "contiguous": lambda weight: weight.contiguous(memory_format=LAST),
    "to": lambda weight: weight.to(memory_format=LAST),
}
for shape in ((576, 1, 5, 5), (96, 16, 1, 1)):
    strides = {name: layout(torch.empty(shape)).stride() for name, layout in LAID_OUT.items()}
    print(f"strides of a weight {shape}: {strides}")
    assert strides["contiguous"] == torch.empty(shape).stride() != strides["to"], "torch has changed"

networks, frames = {}, torch.randn(128, 3, 32, 32).contiguous(memory_format=LAST)
for name, layout in LAID_OUT.items():
    networks[name] = mobilenet_v3_small(weights=None, num_classes=8).train()
    for weight in networks[name].parameters():
        if weight.ndim == 4:
            weight.data = layout(weight.data)
least = dict.fromkeys(networks, float("inf"))
for _ in range(8):  # in turns
    for name, network in networks.items():
        begun = perf_counter()
        network(frames).sum().backward()
        least[name] = min(least[name], perf_counter() - begun)
print(", ".join(f"{name}: {1000 * seconds:.0f} ms a step" for name, seconds in least.items()))
assert least["contiguous"] > 1.3 * least["to"], "torch has changed"
PYTHON
