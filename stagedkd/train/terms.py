"""The unweighted losses of one step: run the student and its guides as far as the phase needs, then compute each loss.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagedkd.data.mix import Batch, strong_view
from stagedkd.data.views import fit_input
from stagedkd.models.network import EMBEDDING, POSITIONS
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import LOGITS
from stagedkd.train.clip_weights import GuideLogits
from stagedkd.train.feature_terms import feature_losses
from stagedkd.train.graft_terms import graft_loss
from stagedkd.train.guides import drawn_guides
from stagedkd.train.maps import TeacherMap
from stagedkd.train.phases import ForwardPlan
from stagedkd.train.response_terms import Responses, label_losses, logit_loss
from stagedkd.train.step import StepInfo, StepModels


def step_losses(
    models: StepModels, phase: PhaseWork, plan: ForwardPlan, batch: Batch, info: StepInfo
) -> dict[str, Tensor]:
    """Compute the unweighted losses of a step by name, in the order of the schema.

    Losses on pairs are means over the pairs, weighted by the hop's `pair_weights` and the phase's `ramp`. With several
    ranks, each rank has the losses of the whole batch: networks run on its local clips, and their outputs are gathered.
    """
    taps = [*plan.student_taps.values(), *plan.exits]
    taps += [tap for tap, used in ((EMBEDDING, plan.embedding), (POSITIONS, plan.positions)) if used]
    start, after = models.student.start(batch)
    needed = {"upto": plan.student_end, "taps": tuple(dict.fromkeys(taps)), "head": phase.head, "after": after}
    student_maps, student_BN = _run_student(models, start, info, 0, **needed)
    teacher_maps, guides, teacher_BN = _run_guides(models, plan, batch, info)
    parts = feature_losses(models, phase, plan, student_maps, teacher_maps, batch, info)
    if phase.losses.graft:
        assert teacher_BN is not None
        parts["graft"] = graft_loss(models, phase, plan, student_maps, teacher_maps, teacher_BN, info)
    if student_BN is not None:
        responses = _responses(models, phase, plan, batch, info, student_maps, student_BN, guides)
        for name in sorted(phase.losses.comparing(LOGITS)):
            parts[name] = logit_loss(models, name, phase.losses.named()[name], responses, batch)
        parts |= label_losses(models, phase.losses, responses, batch)
    return {name: parts[name] for name in phase.losses.named()}


def _responses(
    models: StepModels,
    phase: PhaseWork,
    plan: ForwardPlan,
    batch: Batch,
    info: StepInfo,
    maps: Mapping[str, Tensor],
    plain_BN: Tensor,
    guides: Sequence[GuideLogits],
) -> Responses:
    """Gather what the losses on logits and labels need, and run the student's strong view and its average if they need
    them."""
    named, modules = phase.losses, models.adapters.responses
    exits = [modules.exits[str(k)](maps[name]) for k, name in enumerate(plan.exits)]
    strong_BN = average_BN = None
    if named.fixmatch or named.mean_teacher:
        strong_B3THW = _strong_view(models, batch, info)
        _, strong_BN = _run_student(models, strong_B3THW, info, 1, upto=None, taps=(), head=True)
    if named.mean_teacher:
        with torch.no_grad():
            local_BN = modules.average(batch.view(models.student.input))
        average_BN = models.ranks.gather(local_BN)
    return Responses(plain_BN, guides, maps, exits, strong_BN, average_BN)


def _run_student(
    models: StepModels, start: Tensor, info: StepInfo, view: int, **needed: Any
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run the student on the local clips, and gather the feature maps and logits of all ranks. `view` is 0 for the
    plain view and 1 for the strong one, so that dropout differs; `start` and `needed` as in `Network.run`."""
    ranks = models.ranks
    with ranks.local_draws(models.device, models.options.seed, info.step, view):
        maps, logits = models.student.run(start, **needed)
    return ranks.gather_maps(maps), None if logits is None else ranks.gather(logits)


def _strong_view(models: StepModels, batch: Batch, info: StepInfo) -> Tensor:
    """The strong view of this rank's clips, as the student's input."""
    local, size = models.ranks.local_slice(len(batch.labels_B)), len(batch.labels_B)
    clip_B3THW = strong_view(batch.clip_B3THW, models.options.seed, info.phase, info.step, local.start, size)
    return fit_input(clip_B3THW, models.student.input)


def _run_guides(
    models: StepModels, plan: ForwardPlan, batch: Batch, info: StepInfo
) -> tuple[dict[str, TeacherMap], list[GuideLogits], Tensor | None]:
    """Run the guides. Give the teacher's feature maps by tap, the logits of every guide that is drawn for this step,
    and the teacher's logits, which a graft needs in every step."""
    teacher_maps: dict[str, TeacherMap] = {}
    guides: list[GuideLogits] = []
    teacher_BN: Tensor | None = None
    if not plan.needs_teacher:
        return teacher_maps, guides, teacher_BN
    options = models.options
    drawn = drawn_guides(options.drop, len(models.guides), options.seed, info.step)
    for i, guide in enumerate(models.guides):
        compared, grafted = plan.needs_teacher_logits and i in drawn, i == 0 and bool(plan.grafts)
        taps = (*plan.teacher_taps.values(), *([EMBEDDING] if plan.embedding else [])) if i == 0 else ()
        taps = (*dict.fromkeys(taps), *([POSITIONS] if plan.positions and compared else []))
        if not compared and not grafted and not taps:
            continue
        outputs = guide.outputs(batch, taps, compared or grafted)
        if options.shuffle:
            outputs = outputs.shuffled()
        maps = dict(outputs.maps)
        positions = maps.pop(POSITIONS, None)
        assert positions is None or isinstance(positions, Tensor)
        teacher_maps |= maps
        if outputs.logits is not None and compared:
            guides.append(GuideLogits(outputs.logits, guide.weight, positions))
        teacher_BN = outputs.logits if grafted else teacher_BN
    return teacher_maps, guides, teacher_BN
