"""The inputs of one training (`Job`, `Execution`), and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagedkd.models.network import Network
from stagedkd.plan.kind import Cut, PhaseWork
from stagedkd.spec.schema import Input
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.correlation import Probe
from stagedkd.train.feed import Feed
from stagedkd.train.guides import Guide
from stagedkd.train.kept import KeptPhase
from stagedkd.train.mixture import mixture_shares, share_matrix
from stagedkd.train.ranks import Ranks
from stagedkd.train.rehearsal import Rehearsal
from stagedkd.train.sinks import EventLog
from stagedkd.train.step import DistillOptions, UserLoss
from stagedkd.train.tally import Tally
from stagedkd.train.validate import Validation


@dataclass(frozen=True)
class Execution:
    """How and where a training is run. `scratch` is the folder of its checkpoints; `interrupted` gives the number of a
    signal that came, or None; `on_step` receives the progress after each step whose losses are read, which is every
    `loss_every`th and the last of an epoch; `note` receives what the user should know. With a `rehearsal`, each phase
    ends after a few steps."""

    device: torch.device
    scratch: Path
    log: EventLog
    compile: bool = False
    checkpoint_seconds: float = 5.0
    loss_every: int = 1
    interrupted: Callable[[], int | None] = lambda: None
    on_step: Callable[[dict[str, Any]], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    ranks: Ranks = field(default_factory=Ranks)
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True)
class Job:
    """One training.

    `student` is on the device and initialised; `input` is the input that it takes from the shared view. `guides` teach
    it, the teacher first; there are none if it is trained on labels alone. `probe` measures the correlation of
    substages, if a phase needs it. `normalize`: each loss is divided by its mean over the first epoch of its phase.
    `clip_weights`: weights of the training clips (n,), by the file of their table. `kept`: what is kept in each phase;
    () if nothing is. `validation`: the clips that the student is validated on meanwhile; None: it is not.
    """

    student: Network
    input: Input | None
    phases: tuple[PhaseWork, ...]
    feed: Feed
    execution: Execution
    guides: tuple[Guide, ...] = ()
    adapters: FeatureAdapters = field(default_factory=FeatureAdapters)
    cut: Cut = ()
    teacher_cut: Cut = ()
    options: DistillOptions = field(default_factory=DistillOptions)
    user_losses: Mapping[str, UserLoss] = field(default_factory=dict[str, UserLoss])
    normalize: bool = False
    probe: Probe | None = None
    clip_weights: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    kept: tuple[KeptPhase, ...] = ()
    validation: Validation | None = None


@dataclass
class Progress:
    """The progress of a training.

    `step` counts in the phase, `total` over all phases; `clips` are the clips of all steps. `seconds` is the training
    time, `waited` the part of it that was spent on making batches; `validating` is the time of validations, which comes
    on top, and `top1` the accuracy that the last one found. `sums` are the sums of the losses over `summed` steps of
    this epoch, `last` the means of the last epoch of each phase. `rho` is the last measured correlation of
    substages, and `mixtures` holds, under the pairing `correlation`, the shares of every epoch (`note_mixture`).
    `tally` sums the weighted losses over the steps of this epoch, `tallies` over each phase. `scales` holds, under
    `normalize`, the sum of the absolute values of each loss and their number.
    """

    phase: int = 0
    step: int = 0
    total: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    validating: float = 0.0
    top1: float | None = None
    sums: dict[str, float] = field(default_factory=dict[str, float])
    summed: int = 0
    last: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    rho: list[list[float]] | None = None
    mixtures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tally: Tally = field(default_factory=dict[str, list[float]])
    tallies: dict[str, Tally] = field(default_factory=dict[str, Tally])
    scales: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def note_mixture(self, phase: PhaseWork, epoch: int, cuts: tuple[Cut, Cut]) -> None:
        """Note the shares of the mixtures of an epoch, counted from 1: K rows of M numbers, None for what is not
        compared. `cuts` are those of student and teacher."""
        assert self.rho is not None, "the loop measures it before"
        matrix = share_matrix(mixture_shares(phase.pairs, self.rho), *map(len, cuts))
        self.mixtures.append({"phase": phase.name, "epoch": epoch, "shares": matrix})
