"""The compute of a training in FLOPs, counted from the shapes of the networks and not measured."""

from __future__ import annotations

from collections.abc import Sequence

from stagedkd.models.shapes import NetworkShape
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.work import DistillWork
from stagedkd.train.phases import ForwardPlan, plan_forward


def hop_flops(work: DistillWork, shapes: Sequence[NetworkShape], clips: int) -> int:
    """FLOPs of a hop over all its phases; see `train_flops`.

    Args:
        shapes: the student's, the teacher's, then those of further guides. clips: number of training clips.
    """
    total = 0
    for phase in work.phases:
        steps, plan = -(-clips // phase.train.batch), plan_forward(phase, work.cut, work.teacher_cut)
        total += train_flops(phase, plan, steps, shapes[0], shapes[1:], work.cut, work.drop, work.teacher_cut)
    return total


def train_flops(
    phase: PhaseWork,
    plan: ForwardPlan,
    steps: int,
    student: NetworkShape,
    guides: Sequence[NetworkShape] = (),
    cut: Sequence[Sequence[str]] = (),
    drop: float = 0.0,
    teacher_cut: Sequence[Sequence[str]] = (),
) -> int:
    """FLOPs (2 x multiply-adds) of a phase.

    Every step runs the student forward as far as needed, backward from there to its first trained block at twice the
    cost of that part, and the guides as far as the losses need them; a strong view and the average of `mean_teacher`
    are runs of their own. A graft runs the teacher's later blocks and head forward, and backward at the cost of the
    forward pass, since their weights get no gradient. Projectors, exits, losses, probes of correlation and the
    optimizer are left out.

    Args:
        steps: number of steps of an epoch. guides: shapes of the frozen networks, the teacher first.
        drop: chance that a guide is left out of a step; the count is the mean over the steps. teacher_cut: the
            teacher's substages, if the phase grafts.
    """
    first = cut[min(phase.trained)][0] if cut and phase.trained else None
    end = list(student.block_flops)[-1] if plan.embedding else plan.student_end
    forward = student.flops_of(None, end, phase.head)
    skipped = 0 if phase.trained else student.flops_of(None, list(student.block_flops)[-1], head=False)
    backward = 2 * (student.flops_of(first, end, phase.head) - skipped)  # without substages, of the head alone
    two_views, average = phase.losses.fixmatch or phase.losses.mean_teacher, phase.losses.mean_teacher
    per_clip = (forward + backward) * (2 if two_views else 1) + (forward if average else 0)
    for i, guide in enumerate(guides):
        taps = list(plan.teacher_taps.values()) if i == 0 else []
        taps += list(guide.block_flops)[-1:] if i == 0 and plan.embedding else []  # outputs from a file have no blocks
        last = max(taps, key=list(guide.block_flops).index) if taps else None
        needed = guide.flops_of(None, last, head=False)
        grafted = i == 0 and bool(plan.grafts)
        whole = guide.flops_of(None, None, head=True) if plan.needs_teacher_logits or grafted else needed
        counted = 1 - drop + drop ** len(guides) / len(guides)  # the part of the steps; one guide is never left out
        counted = 1.0 if grafted else counted
        per_clip += _graft_flops(phase, plan, guide, teacher_cut) if grafted else 0
        per_clip += round(counted * whole + (1 - counted) * needed)
    return per_clip * phase.run_epochs * steps * phase.train.batch


def _graft_flops(
    phase: PhaseWork, plan: ForwardPlan, teacher: NetworkShape, teacher_cut: Sequence[Sequence[str]]
) -> int:
    """FLOPs of the teacher behind the student's substages, forward and backward: the mean over the substages if one is
    drawn for each step, else their sum."""
    assert phase.losses.graft is not None
    whole = teacher.flops_of(None, None, head=True)
    later = [2 * (whole - teacher.flops_of(None, teacher_cut[m][-1], head=False)) for _, m in plan.grafts]
    return sum(later) if phase.losses.graft.draw == "all" else round(sum(later) / len(later))
