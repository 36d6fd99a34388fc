"""The networks between teacher and student: shares of the teacher's size made into widths."""

from __future__ import annotations

import math

from stagedkd.spec.schema import (
    FileArch,
    HfArch,
    NetworkFields,
    Resnet3dArch,
    Resnet3dStudent,
    Spec,
    Student,
    TorchvisionArch,
    TrainPatch,
    TsmArch,
)
from stagedkd.spec.zoo import TSM, ZOO, resnet3d_trunk_params, width_for

LARGEST_HOP = 8.0


def trunk_params(network: NetworkFields) -> int | None:
    """Parameters without the head; None for one's own file or one of transformers that does not state `params`."""
    if isinstance(network, Resnet3dArch):
        return resnet3d_trunk_params(network.width, network.blocks, network.conv)
    if isinstance(network, TorchvisionArch):
        return ZOO[network.arch].trunk_params
    if isinstance(network, TsmArch):
        return TSM[network.backbone].trunk_params
    assert isinstance(network, FileArch | HfArch)
    return network.params


def assistants(spec: Spec) -> tuple[Student, ...]:
    """The cascade's assistants as full networks, largest first.

    Raises:
        ValueError: shares are given where sizes are unknown or the student cannot be widened.
    """
    if spec.cascade == "auto":
        return tuple(_widened(spec, share) for share in _auto_shares(spec))
    return tuple(item if isinstance(item, NetworkFields) else _widened(spec, item) for item in spec.cascade)


def _widened(spec: Spec, share: float) -> Student:
    """The student's shape at another width, without its training settings: tuning the student moves no assistant."""
    student, total = spec.student, trunk_params(spec.teacher)
    if not isinstance(student, Resnet3dStudent):
        raise ValueError(f"shares widen a resnet3d; this student is {student.arch}: list its assistants in full")
    if total is None:
        raise ValueError("shares need the teacher's size: state params: at the teacher")
    width = width_for(share * total, student.blocks, student.conv)
    return student.model_copy(update={"width": width, "weights": None, "train": TrainPatch()})


def _auto_shares(spec: Spec) -> list[float]:
    """As few assistants as keep every hop within 8x, in a geometric row."""
    teacher, student = trunk_params(spec.teacher), trunk_params(spec.student)
    if teacher is None or student is None:
        raise ValueError("cascade: auto needs the sizes of teacher and student: state params:")
    hops = max(1, math.ceil(math.log(max(1.0, teacher / student)) / math.log(LARGEST_HOP) - 1e-9))
    return [(student / teacher) ** (i / hops) for i in range(1, hops)]
