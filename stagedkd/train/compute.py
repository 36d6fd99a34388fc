"""The compute of a training in FLOPs, counted from the shapes of the networks and not measured."""

from __future__ import annotations

from collections.abc import Sequence

from stagedkd.models.shapes import NetworkShape
from stagedkd.plan.work import DistillWork, PhaseWork
from stagedkd.train.phases import ForwardPlan, plan_forward


def hop_flops(work: DistillWork, shapes: Sequence[NetworkShape], clips: int) -> int:
    """FLOPs of a hop over all its phases; see `train_flops`.

    Args:
        shapes: the student's, the teacher's, then those of further guides. clips: number of training clips.
    """
    total = 0
    for phase in work.phases:
        steps, plan = -(-clips // phase.train.batch), plan_forward(phase, work.cut, work.teacher_cut)
        total += train_flops(phase, plan, steps, shapes[0], shapes[1:], work.cut, work.drop)
    return total


def train_flops(
    phase: PhaseWork,
    plan: ForwardPlan,
    steps: int,
    student: NetworkShape,
    guides: Sequence[NetworkShape] = (),
    cut: Sequence[Sequence[str]] = (),
    drop: float = 0.0,
) -> int:
    """FLOPs (2 x multiply-adds) of a phase.

    Every step runs the student forward as far as needed, backward from there to its first trained block at twice the
    cost of that part, and the guides as far as the losses need them; a strong view and the average of `mean_teacher`
    are runs of their own. Projectors, exits, losses, probes of correlation and the optimizer are left out.

    Args:
        steps: number of steps of an epoch. guides: shapes of the frozen networks, the teacher first.
        drop: chance that a guide is left out of a step; the count is the mean over the steps.
    """
    first = cut[min(phase.trained)][0] if cut else None
    forward = student.flops_of(None, plan.student_end, phase.head)
    backward = 2 * student.flops_of(first, plan.student_end, phase.head)
    two_views, average = phase.losses.fixmatch or phase.losses.mean_teacher, phase.losses.mean_teacher
    per_clip = (forward + backward) * (2 if two_views else 1) + (forward if average else 0)
    for i, guide in enumerate(guides):
        taps = list(plan.teacher_taps.values()) if i == 0 else []
        last = max(taps, key=list(guide.block_flops).index) if taps else None
        needed = guide.flops_of(None, last, head=False)
        whole = guide.flops_of(None, None, head=True) if plan.needs_teacher_logits else needed
        counted = 1 - drop + drop ** len(guides) / len(guides)  # the part of the steps; one guide is never left out
        per_clip += round(counted * whole + (1 - counted) * needed)
    return per_clip * phase.run_epochs * steps * phase.train.batch
