"""Full precision inside a loss: half types are raised to float32, float64 is kept, autocast is off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate a loss(student, ...): floating arguments, and those in lists and tuples, come in at least float32, and
    autocast is off inside."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        raised = [_raise(arg) for arg in args]
        device = next(_tensors(args), torch.empty(0)).device.type
        with torch.autocast(device, enabled=False):
            return loss(*raised, **kwargs)  # pyright: ignore[reportCallIssue]

    return wrapped


def _raise(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list | tuple):
        return [_raise(part) for part in cast(Iterable[object], value)]
    return value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast(Iterable[Any], value))


def require_equal_shapes(student: Tensor, teacher: Tensor, mend: str) -> None:
    """Raises ValueError naming both shapes."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ: {mend}")
