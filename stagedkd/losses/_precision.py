"""Full precision inside a loss: half types are raised to float32, float64 is kept, autocast is off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate a loss(student, ...): floating arguments come in at least float32, and autocast is off inside."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        raised = [_raise(arg) for arg in args]
        device = cast(Tensor, args[0]).device.type
        with torch.autocast(device, enabled=False):
            return loss(*raised, **kwargs)  # pyright: ignore[reportCallIssue]

    return wrapped


def _raise(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def require_equal_shapes(student: Tensor, teacher: Tensor, mend: str) -> None:
    """Raises ValueError naming both shapes."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ: {mend}")
