#!/usr/bin/env bash
# torchdistill 1.1.5: the BatchNorm of frozen modules of the student moves in every epoch.
#
# Expected: a module that a stage lists under `frozen_modules` stays what it is.
# Seen: its parameters get no gradient, but the process before each epoch puts the whole student into train mode, so
# that a frozen BatchNorm normalises by the batch and its running statistics move: after two batches of noise the network
# gives other logits for the same clip in eval mode. A process of one's own that puts frozen modules into eval mode
# (`register_pre_epoch_proc_func`) keeps them. (Needs about 6 GB for torch.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" torchdistill==1.1.5 torch==2.15.0 torchvision==0.29.2 numpy
"$folder/env/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func

torch.set_num_threads(1)
CPU = torch.device("cpu")


@register_pre_epoch_proc_func
def frozen_modules_in_eval_mode(self, epoch=None, **_):
    default_pre_epoch_process_with_teacher(self, epoch)
    self.student_model.stem.eval()


def network() -> nn.Module:
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5)))
    return net


def moved(process: dict) -> tuple[float, bool]:
    """How far the logits of a frozen stem with a new head moved, and whether the stem's parameters are what they were."""
    torch.manual_seed(0)
    student, teacher = network(), network()
    stem = copy.deepcopy(student.stem)
    logits = (("path", "."), ("io", "output"))
    source = {f"{side}_module_{what}": at for side in ("student", "teacher") for what, at in logits}
    kd = {"key": "KDLoss", "kwargs": source | {"temperature": 4.0, "alpha": 0.5}}
    stage = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"frozen_modules": ["stem"], "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
        **process,
    }
    box = get_distillation_box(teacher, student, {}, {"stage1": stage}, CPU, None, False, 1)
    box.pre_epoch_process(epoch=0)
    for _ in range(2):
        box.post_forward_process(box.forward_process(torch.randn(8, 3, 4, 8, 8) + 3, torch.zeros(8, dtype=torch.long)))
    same = all(map(torch.equal, student.stem.parameters(), stem.parameters()))
    clip = torch.randn(1, 3, 4, 8, 8)
    with torch.no_grad():
        return (student.stem.eval()(clip) - stem.eval()(clip)).abs().max().item(), same


default, own = moved({}), moved({"pre_epoch_process": "frozen_modules_in_eval_mode"})
print(f"default: parameters of the frozen stem unchanged {default[1]}, its output moves by {default[0]:.3f}")
print(f"with frozen modules in eval mode: unchanged {own[1]}, its output moves by {own[0]:.3f}")
assert default[1] and own[1], "torchdistill has changed: frozen parameters are trained"
assert default[0] > 0.1 and own[0] == 0, "torchdistill has changed"
PYTHON
