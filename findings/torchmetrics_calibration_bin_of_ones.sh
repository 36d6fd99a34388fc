#!/usr/bin/env bash
# torchmetrics 1.9.0: multiclass_calibration_error counts predictions of confidence exactly 1 in a bin of their own.
#
# Expected: with n_bins=15 the last bin is from 14/15 to 1, 1 included, as in Guo et al. 2017.
# Seen: a confidence of 1 is in a sixteenth bin. In float32 a softmax rounds to 1 from a gap of about 17 between the two
# largest logits on, so sure networks have many of them. Sure and wrong ones no longer cancel against the right ones of
# the last bin: the error below is 0.115, and 0.085 with all of them in one bin. A difference of 1e-7 in the confidences
# changes the result.
# (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torch==2.15.0 torchmetrics==1.9.0
"$folder/env/bin/python" - <<'PYTHON'
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

print("softmax of a gap of 16 and of 17:", *(float(torch.tensor([gap, 0.0]).softmax(0)[0]) for gap in (16.0, 17.0)))


def error(sure: float) -> float:
    """100 clips: 50 of confidence `sure`, 40 of them right; 50 of confidence 0.97, all right."""
    confidence = torch.tensor([sure] * 50 + [0.97] * 50)
    labels = torch.tensor([0] * 40 + [1] * 10 + [0] * 50)
    return float(multiclass_calibration_error(torch.stack([confidence, 1 - confidence], 1), labels, 2, n_bins=15))


one_bin = abs((0.5 * 1 + 0.5 * 0.97) - 0.9)
print(f"confidence 1: {error(1.0):.3f}; confidence 1 - 1e-7: {error(1 - 1e-7):.3f}; in one bin: {one_bin:.3f}")
assert abs(error(1 - 1e-7) - one_bin) < 1e-4, "torchmetrics has changed"
assert abs(error(1.0) - (0.5 * 0.2 + 0.5 * 0.03)) < 1e-4, "torchmetrics has changed"
PYTHON
