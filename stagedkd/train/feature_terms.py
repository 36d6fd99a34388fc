"""The losses of a step on pairs of feature maps.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import PAIRED
from stagedkd.train.adapters import FeaturePair, pair_weights
from stagedkd.train.phases import ForwardPlan
from stagedkd.train.schedule import ramp
from stagedkd.train.step import StepInfo, StepModels, loss_function


def feature_losses(
    models: StepModels,
    phase: PhaseWork,
    plan: ForwardPlan,
    student_maps: Mapping[str, Tensor],
    teacher_maps: Mapping[str, Tensor],
    batch: Batch,
    info: StepInfo,
) -> dict[str, Tensor]:
    """Compute the losses of a phase on features, of feature maps (B, C, T, H, W) by block; none without pairs."""
    if not phase.pairs:
        return {}
    student = {k: student_maps[name] for k, name in plan.student_taps.items()}
    teacher = {m: teacher_maps[name] for m, name in plan.teacher_taps.items()}
    pairs = models.adapters.make_pairs(phase, student, teacher, info.rho_KM)
    parts = _pair_losses(models, phase, pairs, batch, info)
    if phase.losses.stage_cka:
        rows = one_to_one(phase.pairs, info.rho_KM)
        maps = [student[k] for k, _ in rows], [teacher[m] for _, m in rows]
        parts["stage_cka"] = losses.stage_cka(*maps, **phase.losses.stage_cka.params)
    return parts


def one_to_one(pairs: Sequence[tuple[int, int]], rho_KM: Tensor | None) -> list[tuple[int, int]]:
    """Pair each student substage with one teacher substage: the one of the highest correlation, or the deepest one if
    correlation is not measured."""
    rows: list[tuple[int, int]] = []
    for k in sorted({k for k, _ in pairs}):
        teachers = [m for student, m in pairs if student == k]
        rows.append((k, max(teachers, key=lambda m: float(rho_KM[k, m]) if rho_KM is not None else m)))
    return rows


def _pair_losses(
    models: StepModels, phase: PhaseWork, pairs: Sequence[FeaturePair], batch: Batch, info: StepInfo
) -> dict[str, Tensor]:
    """The losses on pairs of feature maps."""
    ramps = [ramp(j, info.epoch, phase.ramp) for j in range(len(pairs))]
    weights = [w * r for w, r in zip(pair_weights(pairs, models.options.pair_weights), ramps, strict=True)]
    parts: dict[str, Tensor] = {}
    for name in sorted(phase.losses.comparing(PAIRED)):
        loss = phase.losses.named()[name]
        function = loss_function(models, name, loss)
        weighted: list[Tensor] = []
        for pair, weight in zip(pairs, weights, strict=True):
            student = pair.projected if loss.compared == "projected" else pair.student
            assert student is not None
            weighted.append(weight * function(student, pair.teacher))
        parts[name] = torch.stack(weighted).mean()
    if phase.losses.crd:
        assert batch.rows_B is not None
        deepest = pairs[-1]
        parts["crd"] = models.adapters.contrast(phase)(deepest.student, deepest.teacher, batch.rows_B)
    return parts
