"""The loss `graft`: the student up to a substage, then the frozen teacher's later blocks and head.

Our formulation, after Shen et al. 2021 (Progressive Network Grafting for Few-Shot Knowledge Distillation).

Shape legend: B clips, C channels, T frames, H, W positions, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stagedkd import losses
from stagedkd.data.draws import Stream, uniform
from stagedkd.errors import TrainingError
from stagedkd.losses.cells import mean_of
from stagedkd.plan.kind import PhaseWork
from stagedkd.train.guides import LiveGuide
from stagedkd.train.maps import TeacherMap, grid_of
from stagedkd.train.phases import ForwardPlan
from stagedkd.train.step import StepInfo, StepModels


def graft_loss(
    models: StepModels,
    phase: PhaseWork,
    plan: ForwardPlan,
    student_maps: Mapping[str, Tensor],
    teacher_maps: Mapping[str, TeacherMap],
    teacher_BN: Tensor,
    info: StepInfo,
) -> Tensor:
    """Compute temperature^2 * KL(teacher || grafted) for the substage of this step, or the mean over all substages.

    The teacher's blocks get no gradient; the student's blocks and the projector get theirs through them. With several
    ranks, each runs the teacher's later blocks on the whole batch, whose statistics the projector needs.

    Args:
        student_maps, teacher_maps: (B, C, T, H, W) by block; of the teacher's only the grid counts.
        teacher_BN: the teacher's logits.
    Raises:
        TrainingError: the teacher does not run in training.
    """
    graft, guide = phase.losses.graft, models.guides[0]
    assert graft is not None
    if not isinstance(guide, LiveGuide) or guide.run_from is None:
        message = "graft runs the teacher's later blocks, and this teacher gives outputs only"
        raise TrainingError(message, hint="use a teacher that is a network here, or a loss such as kd or hint")
    pairs = plan.grafts
    if graft.draw == "one":
        pairs = (pairs[drawn_graft(models.options.seed, info.step, len(pairs))],)
    values: list[Tensor] = []
    for k, m in pairs:
        block = plan.teacher_taps[m]
        grid = grid_of(teacher_maps[block])
        grafted_BCTHW = models.adapters.grafted(k, m, student_maps[plan.student_taps[k]], grid)
        values.append(losses.kd(guide.run_from(grafted_BCTHW, block), teacher_BN, **graft.params))
    return mean_of(values)


def drawn_graft(seed: int, step: int, count: int) -> int:
    """Draw which of `count` substages is grafted in a step, with equal chances."""
    return int(uniform(seed, Stream.GRAFT, step) * count)
