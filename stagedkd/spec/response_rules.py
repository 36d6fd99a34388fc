"""Rules of the losses on logits and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stagedkd.spec.cuts import student_cut
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.schema import Phase, Spec, Student
from stagedkd.spec.yaml import Path_

HEADS = "the head must be the mean over the last map and a linear layer"


def response_problems(spec: Spec, listed: Sequence[Student], path: Path_, phase: Phase) -> Iterator[PathProblem]:
    """Check the losses of a phase against the networks of all hops, with the assistants `listed`, and the augmentation.

    Args:
        path: that of the phase.
    """
    for name, loss in phase.losses.named().items():
        if loss.weighing is not None and loss.unweighable:
            message = f"'{name}' cannot weigh clips: {loss.unweighable}"
            yield PathProblem(message, (*path, "losses", name, "weigh"), "remove weigh")
    if phase.losses.elr and (spec.augment.mixup or spec.augment.cutmix):
        message = "'elr' remembers what the student says of each clip, and a mixed clip is two"
        yield PathProblem(message, (*path, "losses", "elr"), "set augment.mixup and augment.cutmix to 0")
    if phase.losses.sdd:
        networks = [spec.teacher, *spec.co_teachers, *listed, spec.student]
        others = sorted({network.title for network in networks if not network.linear_head})
        if others:
            message = f"'sdd' needs the logits of regions, so {HEADS}; that of {' and of '.join(others)} is not"
            hint = "use resnet3d, r3d_18, mc3_18, r2plus1d_18, swin3d_* or tsm on a resnet; or another loss, such as kd"
            yield PathProblem(message, (*path, "losses", "sdd"), hint)
    if phase.losses.ofa:
        for network in [*listed, spec.student]:
            if not student_cut(network):
                message = f"'ofa' puts an exit behind each substage, but {network.title} declares none"
                yield PathProblem(message, (*path, "losses", "ofa"), "add student.substages")
                return
