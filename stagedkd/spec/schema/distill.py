"""Section `distill`: phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag

from stagedkd.spec.schema.base import Count, Epochs, Section, by_form
from stagedkd.spec.schema.losses import Losses
from stagedkd.spec.schema.training import TrainPatch

Trained: TypeAlias = Annotated[
    Annotated[Literal["all", "one_by_one"], Tag("word")] | Annotated[tuple[Count, ...], Tag("list")],
    by_form("all, one_by_one or a list of substage numbers"),
]

PhaseName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]


class Phase(Section):
    """A span of epochs with its own trained substages and losses."""

    epochs: Epochs | None = None
    """Epochs (of each substage under one_by_one); unset: what the student's `epochs` leave."""
    losses: Losses
    """The losses, by name."""
    substages: Trained = "all"
    """Which substages are trained: all; one_by_one, a phase each with the earlier ones frozen; or their numbers,
    counted from 1."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this phase."""


class Distill(Section):
    """How each hop of the cascade is trained."""

    phases: Annotated[Mapping[PhaseName, Phase], Field(min_length=1)]
    """The phases by name, run in order."""
