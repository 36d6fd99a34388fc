"""Full precision inside a loss: half types become float32, float64 stays, autocast is off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of features, such as a loss(student, ...), so that its floating arguments, also those in
    lists and tuples, arrive in at least float32, and autocast is off inside."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        raised = [_to_float32(arg) for arg in args]
        device = next(_tensors(args), torch.empty(0)).device.type
        with torch.autocast(device, enabled=False):
            return loss(*raised, **kwargs)  # pyright: ignore[reportCallIssue]

    return wrapped


def _to_float32(value: object) -> object:
    """Return half-precision tensors as float32, also inside lists and tuples, and everything else unchanged."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list | tuple):
        return [_to_float32(part) for part in cast(Iterable[object], value)]
    return value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, also those in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast(Iterable[Any], value))


def require_equal_shapes(student: Tensor, teacher: Tensor, hint: str) -> None:
    """Raise ValueError, which names both shapes and the hint, if the shapes differ."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ: {hint}")
