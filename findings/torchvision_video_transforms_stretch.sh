#!/usr/bin/env bash
# torchvision 0.29.2: half of the transforms that come with its Kinetics weights stretch the picture.
#
# Expected: the transform of a weight entry scales the shorter side and crops, as the evaluation of Kinetics does.
# Seen: r3d_18, mc3_18 and r2plus1d_18 scale every video to 171x128 and s3d to 256x256, whatever its shape. A circle in
# a 16:9 video comes out 1.33 and 1.77 times as tall as wide; in mvit and swin3d it stays round. So accuracy with these
# weights differs between pipelines that keep the shape and the one that the weights were evaluated with.
# (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchvision==0.29.2
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torchvision.models import get_model_weights

height, width = 360, 640
y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
circle = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < 80**2).to(torch.uint8) * 255
video = circle.expand(2, 3, height, width).contiguous()  # T, C, H, W
seen = {}
for name in ("r3d_18", "r2plus1d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t"):
    picture = get_model_weights(name).DEFAULT.transforms()(video)[0, 0]
    inside = picture > picture.mean()
    seen[name] = inside.any(1).sum().item() / inside.any(0).sum().item()
    print(f"{name}: a circle is {seen[name]:.2f} times as tall as wide")
assert all(abs(seen[name] - 1.33) < 0.05 for name in ("r3d_18", "r2plus1d_18", "mc3_18")), "torchvision has changed"
assert abs(seen["s3d"] - 1.77) < 0.05 and abs(seen["mvit_v2_s"] - 1) < 0.03, "torchvision has changed"
PYTHON
