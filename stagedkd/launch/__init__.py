"""Stages in other processes: the ranks of one training, or workers that make one stage each."""

from __future__ import annotations

from typing import Literal, TypeAlias

Engine: TypeAlias = Literal["in-process", "parsl"]  # what makes the stages of a run
