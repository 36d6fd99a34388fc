#!/usr/bin/env bash
# torch 2.15.0: FlopCounterMode counts no FLOPs for a transformer layer in eval mode.
#
# Expected: eval mode changes dropout, not the number of multiply-adds.
# Seen: in eval mode without gradients nn.TransformerEncoderLayer and nn.MultiheadAttention take a fused operator that
# the counter does not know: 0 FLOPs. torchvision's vit_b_16 counts 35.1 GFLOPs in train mode and 22.5 in eval mode.
# On the meta device the fused operator is not taken, and both modes count the same: that is where to count.
# (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchvision==0.29.2
"$folder/env/bin/python" - <<'PYTHON'
import warnings

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vit_b_16

warnings.simplefilter("ignore")


def flops(network: nn.Module, shape: tuple[int, ...], device: str, train: bool) -> int:
    network.train(train)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device=device))
    return counter.get_total_flops()


seen = {}
for device in ("cpu", "meta"):
    with torch.device(device):
        layer, vit = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), vit_b_16(weights=None)
    for train in (True, False):
        seen[device, train] = flops(layer, (2, 8, 64), device, train), flops(vit, (1, 3, 224, 224), device, train)
        one, other = seen[device, train]
        print(f"{device}, {'train' if train else 'eval'}: layer {one:,}, vit_b_16 {other / 1e9:.1f} GFLOPs")
assert seen["cpu", False][0] == 0 < seen["cpu", True][0], "torch has changed"
assert seen["cpu", False][1] < 0.7 * seen["cpu", True][1], "torch has changed"
assert seen["meta", False] == seen["meta", True] == seen["cpu", True], "torch has changed"
PYTHON
