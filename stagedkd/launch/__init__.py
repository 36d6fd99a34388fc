"""A stage in other processes: ranks of one training, workers with a stage each."""

from __future__ import annotations

from typing import Literal, TypeAlias

Engine: TypeAlias = Literal["in-process", "parsl"]  # what makes the stages of a run
