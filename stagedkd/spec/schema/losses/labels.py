"""Losses on labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stagedkd.spec.schema.losses.base import Loss


class Ce(Loss):
    """Cross-entropy on the labels of the clips."""

    compares = "labels"

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (Szegedy et al. 2016)."""


class Pseudo(Loss):
    """Cross-entropy on refined labels, for the clips whose label was accepted. The mean is over all clips of the
    batch."""

    compares = "labels"


class Fixmatch(Loss):
    """FixMatch, Sohn et al. 2020: cross-entropy between the student's output for a strong view and the class that the
    student predicts for the plain view, if that prediction is confident enough. The student runs twice."""

    compares = "labels"

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Smallest probability at which the predicted class is used."""
