"""The hop of `benchmarks/hop.py` in torchdistill 1.1.5: a MultiStagesDistillationBox, one of its stages for each phase.

Grow phases use redesigned networks (`sequential`, `frozen_modules`, a projector as an adaptation), so that both run
only as far as needed. The joint phase uses forward hooks and an auxiliary wrapper with the projectors. Two things are
not torchdistill's defaults: frozen modules are in eval mode, as in stagedkd, and AdamW has groups without decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hop_loop import (
    CE,
    TEMPERATURE,
    blocks_of,
    feature_weight,
    gaussian_w2,
    normalised,
    parameter_groups,
    projector_name,
    rate_factor,
    warmup_steps,
)
from torch import Tensor, nn
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
from torchdistill.losses.registry import register_low_level_loss
from torchdistill.models.registry import register_adaptation_module, register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper
from torchdistill.optim.registry import register_optimizer, register_scheduler

from stagedkd.train.job import Job

CPU = torch.device("cpu")


@register_adaptation_module
def the_projector(projector: nn.Module) -> nn.Module:
    """The projector itself, since the grow phases and the joint phase train the same one."""
    return projector


@register_auxiliary_model_wrapper
class ProjectedStudent(AuxiliaryModelWrapper):
    """The student with its projectors, which run on the outputs of hooked blocks."""

    def __init__(self, student_model: nn.Module, projectors: dict[str, nn.Module], **_: Any) -> None:
        super().__init__()
        self.student_model, self.blocks = student_model, tuple(projectors)
        self.projectors = nn.ModuleList(projectors.values())

    def forward(self, clip_B3THW: Tensor) -> Tensor:
        """Return logits (B, N)."""
        return self.student_model(clip_B3THW)

    def secondary_forward(self, io_dict: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Run the projectors; hooks hold what they return."""
        for block, projector in zip(self.blocks, self.projectors, strict=True):
            projector(io_dict[f"student_model.{block}"]["output"])


@register_low_level_loss
class GaussianW2(nn.Module):
    """`gaussian_w2` as a module."""

    def forward(self, student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
        """Return a scalar."""
        return gaussian_w2(student_BCTHW, teacher_BCTHW)


@register_optimizer
def adamw_in_groups(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, without decay of biases and norms."""
    return torch.optim.AdamW(parameter_groups(parameters, weight_decay), lr=lr)


@register_scheduler
def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> Any:
    """The schedule of stagedkd, by the step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, warmup))


@register_pre_epoch_proc_func
def frozen_in_eval_mode(self: Any, epoch: int | None = None, **_: Any) -> None:
    """torchdistill's own, which puts the whole student into train mode; then frozen modules into eval mode."""
    default_pre_epoch_process_with_teacher(self, epoch)
    for module in self.student_model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _stage(job: Job, number: int) -> dict[str, Any]:
    """The configuration of a stage, but for its networks and losses."""
    phase, epoch_steps = job.phases[number], job.feed.steps(job.phases[number])
    train, steps = phase.train, phase.run_epochs * epoch_steps
    return {
        "num_epochs": phase.run_epochs,
        "pre_epoch_process": "frozen_in_eval_mode",
        "optimizer": {
            "key": "adamw_in_groups",
            "kwargs": {"lr": train.lr, "weight_decay": train.weight_decay},
            "max_grad_norm": train.clip_grad,
        },
        "scheduler": {
            "key": "warmup_cosine",
            "kwargs": {"steps": steps, "warmup": warmup_steps(train, steps, epoch_steps)},
            "scheduling_step": 1,
        },
    }


def _feature_term(student: str, teacher: str, weight: float) -> dict[str, Any]:
    source = {
        "input": {"is_from_teacher": False, "module_path": student, "io": "output"},
        "target": {"is_from_teacher": True, "module_path": teacher, "io": "output"},
    }
    wrapper = {"key": "SimpleLossWrapper", "kwargs": source}
    return {"criterion": {"key": "GaussianW2", "kwargs": {}}, "criterion_wrapper": wrapper, "weight": weight}


def _criterion(terms: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": dict(terms)}}


def _grow(job: Job, number: int) -> dict[str, Any]:
    """A stage that trains one substage: both networks are cut behind it."""
    phase = job.phases[number]
    (pair,) = phase.pairs
    student, teacher = blocks_of(job.cut, phase, 0), blocks_of(job.teacher_cut, phase, 1)
    trained = {name for k in phase.trained for name in job.cut[k]}
    projector = {"key": "the_projector", "kwargs": {"projector": job.adapters.projectors[projector_name(pair)]}}
    return _stage(job, number) | {
        "teacher": {"sequential": teacher, "requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {
            "sequential": [*student, "+projector"],
            "adaptations": {"projector": projector},
            "frozen_modules": [name for name in student if name not in trained],
            "forward_proc": "forward_batch_only",
        },
        "criterion": _criterion({"w2": _feature_term(".", ".", feature_weight(phase))}),
    }


def _joint(job: Job, number: int) -> dict[str, Any]:
    """The stage that trains the whole student."""
    phase = job.phases[number]
    pairs = [(job.cut[k][-1], job.teacher_cut[m][-1], projector_name((k, m))) for k, m in phase.pairs]
    projectors = {block: job.adapters.projectors[name] for block, _, name in pairs}
    hooks = [f"student_model.{block}" for block in projectors] + [f"projectors.{i}" for i in range(len(pairs))]
    logits = (("path", "."), ("io", "output"))
    source = {f"{side}_module_{what}": at for side in ("student", "teacher") for what, at in logits}
    kd = source | {"temperature": TEMPERATURE, "alpha": CE}
    weight = feature_weight(phase) / len(pairs)
    terms = {f"w2_{i}": _feature_term(f"projectors.{i}", pair[1], weight) for i, pair in enumerate(pairs)}
    return _stage(job, number) | {
        "teacher": {
            "forward_hook": {"output": [teacher for _, teacher, _ in pairs]},
            "requires_grad": False,
            "forward_proc": "forward_batch_only",
        },
        "student": {
            "auxiliary_model_wrapper": {"key": "ProjectedStudent", "kwargs": {"projectors": projectors}},
            "forward_hook": {"output": hooks},
            "forward_proc": "forward_batch_only",
        },
        "criterion": _criterion({"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}} | terms),
    }


def train_with_torchdistill(job: Job, teacher: nn.Module) -> Mapping[str, float]:
    """Train the hop. Returns the mean of the weighted loss over the last epoch of each phase."""
    job.student.net.requires_grad_(True)
    stages = [_joint(job, i) if phase.head else _grow(job, i) for i, phase in enumerate(job.phases)]
    config = {f"stage{i}": stage for i, stage in enumerate(stages, 1)}
    box = get_distillation_box(teacher, job.student.net, {}, config, CPU, None, False, 1)
    ends: dict[str, float] = {}
    for number, phase in enumerate(job.phases):
        batches, epoch_steps = job.feed.batches(phase, number, 0, CPU), job.feed.steps(phase)
        for epoch in range(phase.run_epochs):
            box.pre_epoch_process(epoch=epoch)
            totals: list[float] = []
            for _ in range(epoch_steps):
                batch, _ = next(batches)
                loss = box.forward_process(normalised(batch.clip_B3THW), batch.labels_B)
                box.post_forward_process(loss)
                totals.append(loss.item())
            ends[phase.name] = sum(totals) / epoch_steps
            box.post_epoch_process()
        batches.close()
    return ends
