"""Losses on labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stagedkd.spec.schema.losses.base import Factor
from stagedkd.spec.schema.losses.clipwise import ClipLoss


class Ce(ClipLoss):
    """Cross-entropy on the labels of the clips."""

    compares = "labels"
    given_labels = True

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing (Szegedy et al. 2016)."""


class Gce(ClipLoss):
    """Generalised cross-entropy for noisy labels, Zhang & Sabuncu 2018, without their truncation: (1 - p^q) / q, where
    p is the probability of the given label."""

    compares = "labels"
    given_labels = True

    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Between cross-entropy (towards 0) and the mean absolute error (1), which learns more slowly and, by the paper,
    withstands more noise."""


class Sce(ClipLoss):
    """Symmetric cross-entropy for noisy labels, Wang et al. 2019: alpha * CE + beta * reverse CE."""

    compares = "labels"
    given_labels = True

    alpha: Factor = 0.1
    """Weight of the cross-entropy. The paper has 0.1 for 10 classes and 6 for 100."""
    beta: Factor = 1.0
    """Weight of the reverse cross-entropy. The paper has 1 for 10 classes and 0.1 for 100."""
    log_zero: Annotated[float, Field(lt=0, ge=-1000)] = -4.0
    """The value A that stands for log 0 in the reverse cross-entropy."""


class Elr(ClipLoss):
    """Early-learning regularisation for noisy labels, Liu et al. 2020: CE + strength * log(1 - <p, t>), where t is the
    moving average of what the student said of the clip before. It remembers n clips times N classes."""

    compares = "labels"
    given_labels = True

    strength: Factor = 3.0
    """Weight of the regularisation (lambda). The paper has 3 for 10 classes and 7 for 100."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Weight of the old average of a clip when the clip is seen again (beta)."""


class Pseudo(ClipLoss):
    """Cross-entropy on refined labels, for the clips whose label was accepted. The mean is over all clips of the
    batch."""

    compares = "labels"


class Fixmatch(ClipLoss):
    """FixMatch, Sohn et al. 2020: cross-entropy between the student's output for a strong view and the class that the
    student predicts for the plain view, if that prediction is confident enough. The student runs twice."""

    compares = "labels"

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Smallest probability at which the predicted class is used."""


class MeanTeacher(ClipLoss):
    """Mean Teacher, Tarvainen & Valpola 2017: mean squared error between the probabilities of the student for a strong
    view and those of the average of its weights for the plain view. The student runs twice, its average once."""

    compares = "labels"

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Weight of the old average in each step; in step k, counted from 0, it is at most 1 - 1 / (k + 1)."""
