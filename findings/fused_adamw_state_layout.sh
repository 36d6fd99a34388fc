#!/usr/bin/env bash
# torch 2.15.0: on the CPU, a fused AdamW silently mixes up elements of a parameter after `load_state_dict` of a state
# that lies in another memory layout.
#
# Expected: the state of a training in the standard layout goes on in one with `channels_last_3d` weights, as it does
# with the plain optimizer, or is refused.
# Seen: `load_state_dict` keeps the strides of the loaded moments, and the fused step walks through the memory of
# parameter, gradient and moments as if they were alike. Nothing is raised, and the weights go elsewhere; the plain
# optimizer goes on within rounding. A checkpoint that was written channels last, or one whose moments are copied into the
# layout of their parameters, is right. So is every fused run without a change of layout. (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torch import nn

torch.set_num_threads(1)
STANDARD, LAST = torch.contiguous_format, torch.channels_last_3d


def trained(before, after, *, fused: bool) -> torch.Tensor:
    """Train a convolution for three steps in one layout, go on from its state in another for three, give the weights."""
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, 3).to(memory_format=before)
    optimizer = torch.optim.AdamW(conv.parameters(), lr=1e-2, fused=fused)
    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            conv = conv.to(memory_format=after)
            optimizer = torch.optim.AdamW(conv.parameters(), lr=1e-2, fused=fused)
            optimizer.load_state_dict(state)
        clip = torch.randn(2, 3, 5, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        conv(clip).square().mean().backward()
        optimizer.step()
    return conv.weight.detach().clone()


right = trained(STANDARD, STANDARD, fused=False)
off = {
    (before, after, fused): (trained(before, after, fused=fused) - right).abs().max().item()
    for before in (STANDARD, LAST)
    for after in (STANDARD, LAST)
    for fused in (False, True)
}
for (before, after, fused), distance in off.items():
    print(f"{'fused' if fused else 'plain'}, {before} then {after}: largest difference of a weight {distance:.1e}")
for (before, after, fused), distance in off.items():
    wrong = fused and before != after
    assert (distance > 1e-3) == wrong and (wrong or distance < 1e-6), "torch has changed"
PYTHON
