"""The tools that trainings can be logged with. Each is a package, and an extra of this one, of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal, TypeAlias

LoggerName: TypeAlias = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def missing(names: Iterable[LoggerName]) -> tuple[LoggerName, ...]:
    """The tools whose package is not installed. None is imported."""
    return tuple(name for name in dict.fromkeys(names) if find_spec(name) is None)
