"""The losses of a step on pairs of feature maps.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.models.network import EMBEDDING
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import EMBEDDED, FEATURES, GRAFT, PAIRED
from stagedkd.spec.schema.losses.paired import PairedLoss
from stagedkd.train.adapters import FeaturePair, pair_weights
from stagedkd.train.maps import TeacherMap, whole_map
from stagedkd.train.phases import ForwardPlan
from stagedkd.train.schedule import ramp
from stagedkd.train.step import StepInfo, StepModels, loss_function


def feature_losses(
    models: StepModels,
    phase: PhaseWork,
    plan: ForwardPlan,
    student_maps: Mapping[str, Tensor],
    teacher_maps: Mapping[str, TeacherMap],
    batch: Batch,
    info: StepInfo,
) -> dict[str, Tensor]:
    """Compute the losses of a phase on features but for `graft`, of feature maps (B, C, T, H, W) by tap;
    of the teacher's, what was kept will do."""
    parts = _embedding_losses(models, phase, student_maps, teacher_maps, batch)
    if not phase.losses.comparing(FEATURES - GRAFT):
        return parts
    student = {k: student_maps[name] for k, name in plan.student_taps.items()}
    teacher = {m: teacher_maps[name] for m, name in plan.teacher_taps.items()}
    pairs = models.adapters.make_pairs(phase, student, teacher, info.rho_KM)
    parts |= _pair_losses(models, phase, pairs, batch, info)
    if phase.losses.stage_cka:
        rows = one_to_one(phase.pairs, info.rho_KM)
        maps = [student[k] for k, _ in rows], [whole_map(teacher[m]) for _, m in rows]
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
    """The losses on pairs of feature maps. A loss on the deepest pair alone has the pair's ramp and the weight 1."""
    ramps = [ramp(j, info.epoch, phase.ramp) for j in range(len(pairs))]
    weights = [w * r for w, r in zip(pair_weights(pairs, models.options.pair_weights), ramps, strict=True)]
    parts: dict[str, Tensor] = {}
    for name in sorted(phase.losses.comparing(PAIRED)):
        loss = phase.losses.named()[name]
        function = loss_function(models, name, loss)
        weighted: list[Tensor] = []
        deepest = isinstance(loss, PairedLoss) and loss.taps == "deepest"
        chosen = [(pairs[-1], ramps[-1])] if deepest else zip(pairs, weights, strict=True)
        for pair, weight in chosen:
            student = pair.projected if loss.compared == "projected" else pair.student
            assert student is not None
            weighted.append(weight * function(student, pair.teacher_for(loss)))
        summed = isinstance(loss, PairedLoss) and loss.reduce == "sum"
        parts[name] = torch.stack(weighted).sum() if summed else torch.stack(weighted).mean()
    if phase.losses.crd and phase.losses.crd.compared not in EMBEDDED:
        assert batch.rows_B is not None
        student, teacher = pairs[-1].student, pairs[-1].teacher_for(phase.losses.crd)
        parts["crd"] = models.adapters.contrast(phase)(student, teacher, batch.rows_B)
    return parts


def _embedding_losses(
    models: StepModels,
    phase: PhaseWork,
    student_maps: Mapping[str, Tensor],
    teacher_maps: Mapping[str, TeacherMap],
    batch: Batch,
) -> dict[str, Tensor]:
    """The losses on the pooled features in front of the heads, (B, C, 1, 1, 1)."""
    parts: dict[str, Tensor] = {}
    for name in sorted(phase.losses.comparing(EMBEDDED)):
        loss, student, teacher = phase.losses.named()[name], student_maps[EMBEDDING], teacher_maps[EMBEDDING]
        assert isinstance(teacher, Tensor)
        if name == "crd":
            assert batch.rows_B is not None
            parts[name] = models.adapters.contrast(phase)(student, teacher, batch.rows_B)
            continue
        student = models.adapters.embedded(student) if loss.compared == "projected_embedding" else student
        parts[name] = loss_function(models, name, loss)(student, teacher)
    return parts
