"""The batches of a training, cut from an endless sequence of permutations of the clips. So every batch is full, and the
number of a step determines its batch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import Stream
from stagedkd.data.mix import Batch, mix
from stagedkd.data.source import ClipSource, ahead
from stagedkd.data.views import View, draw_views
from stagedkd.errors import DataError
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Augment
from stagedkd.train.order import Passes, balanced, by_class, class_weights, in_turn, labelled_before
from stagedkd.train.ranks import Ranks

ALONE = Ranks()


@dataclass(frozen=True)
class Picked:
    """The clips of a step: their rows among the training clips, their ids, views and labels, the epoch in which the
    step begins, and how often each clip has come before."""

    rows: npt.NDArray[np.int64]
    clip_ids: list[int]
    views: list[View]
    labels: npt.NDArray[np.int64]
    epoch: int
    turns: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Refined:
    """Refined labels of the training clips: posteriors (n, N) float32, and which of them are accepted (n,)."""

    posteriors: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Feed:
    """The training clips and how batches are made of them.

    `labels` are the given labels (-1: none). `seed` draws the order of the clips and their views; `view_count` is the
    number of views of a clip (None: unlimited). `workers` is the number of threads that load ahead. `classes` are the
    names of the classes, which class weights need. `alone` are the losses that need labelled clips alone.
    `kept_views` is the number of views for which outputs of networks can be kept; None: no view comes back.
    """

    source: ClipSource
    clip_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    augment: Augment
    seed: int
    view_count: int | None = None
    workers: int = 1
    refined: Refined | None = None
    classes: tuple[str, ...] = ()
    alone: frozenset[str] = frozenset({"ce"})
    passes: Passes = field(default_factory=Passes, compare=False, repr=False)
    kept_views: int | None = None

    @cached_property
    def all_rows(self) -> npt.NDArray[np.int64]:
        """The rows of all training clips."""
        return np.arange(len(self.labels))

    @cached_property
    def labelled_rows(self) -> npt.NDArray[np.int64]:
        """The rows of the training clips that have a label."""
        return np.flatnonzero(self.labels >= 0)

    @cached_property
    def unlabelled_rows(self) -> npt.NDArray[np.int64]:
        """The rows of the training clips without a label."""
        return np.flatnonzero(self.labels < 0)

    @cached_property
    def members(self) -> dict[int, npt.NDArray[np.int64]]:
        """The rows of the labelled clips, by class."""
        return by_class(self.labelled_rows, self.labels[self.labelled_rows])

    @property
    def slots(self) -> int:
        """The number of slots: one for each clip and view."""
        return len(self.clip_ids) * (self.kept_views or 0)

    def steps(self, phase: PhaseWork) -> int:
        """The number of steps of an epoch: ceil(training clips / batch), whichever clips the losses use."""
        return -(-len(self.clip_ids) // phase.train.batch)

    def pick(self, phase: PhaseWork, phase_index: int, step: int) -> Picked:
        """Pick the clips of step `step` (from 0) of the phase `phase_index` (from 0).

        A phase with losses on given labels alone, such as `ce`, or with those of `alone`, cycles through the labelled
        clips. Under `train.labelled` labelled and unlabelled clips come apart, the labelled ones first. Every other
        phase uses all clips.
        """
        batch, seed, passes = phase.train.batch, self.seed, self.passes
        places = np.arange(step * batch, (step + 1) * batch)
        if set(phase.losses.named()) <= self.alone | phase.losses.given_labels or (
            phase.train.labelled is not None and not len(self.unlabelled_rows)
        ):
            rows, turns = self._labelled(phase, phase_index, places)
        elif phase.train.labelled is None:
            rows, turns = in_turn(self.all_rows, places, seed, Stream.ORDER, phase_index, passes)
        else:
            first, last = (labelled_before(phase.train.labelled, end) for end in (step * batch, (step + 1) * batch))
            labelled = self._labelled(phase, phase_index, np.arange(first, last))
            rest = np.arange(step * batch - first, (step + 1) * batch - last)
            unlabelled = in_turn(self.unlabelled_rows, rest, seed, Stream.ORDER_UNLABELLED, phase_index, passes)
            rows, turns = (np.concatenate(both) for both in zip(labelled, unlabelled, strict=True))
        clip_ids, epochs = self.clip_ids[rows].tolist(), [self._epoch(phase_index, turn) for turn in turns.tolist()]
        draws = draw_views(self.seed, np.array(epochs), self.clip_ids[rows])
        views = [
            self.source.train_view(clip, self.augment, self.seed, epoch, draw)
            for clip, epoch, draw in zip(clip_ids, epochs, draws, strict=True)
        ]
        return Picked(rows, clip_ids, views, self.labels[rows], self._epoch(phase_index, int(turns[0])), turns)

    def _labelled(
        self, phase: PhaseWork, phase_index: int, places: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows at `places` of the sequence of labelled clips, and how often each has come before."""
        if not len(self.labelled_rows):
            hint = "raise labels.clean or labels.noisy"
            raise DataError(f"the phase {phase.name} draws labelled clips, and no training clip has a label", hint=hint)
        if phase.train.balance:
            return balanced(self.members, places, self.seed, phase_index, self.passes)
        return in_turn(self.labelled_rows, places, self.seed, Stream.ORDER, phase_index, self.passes)

    def _class_weights(self, phase: PhaseWork, device: torch.device) -> Tensor | None:
        """The weights of the classes in `ce`, (N,); None if all weigh 1."""
        setting = phase.train.class_weights
        if setting is None:
            return None
        return torch.from_numpy(class_weights(setting, self.classes, self.labels)).to(device)

    def _epoch(self, phase_index: int, turn: int) -> int:
        """The epoch by which views are drawn. If the number of views is limited, all phases use the same ones."""
        return turn % self.view_count if self.view_count else (phase_index << 24) + turn

    def batch(self, phase: PhaseWork, phase_index: int, step: int, device: torch.device) -> Batch:
        """Load the batch of one step: clips in 0..1 and labels."""
        picked = self.pick(phase, phase_index, step)
        batch = self._finish(picked, self.source.load(picked.clip_ids, picked.views), step, device, ALONE)
        return replace(batch, class_weights_N=self._class_weights(phase, device))

    def _finish(self, picked: Picked, loaded: list[Tensor], step: int, device: torch.device, ranks: Ranks) -> Batch:
        """Augment the loaded clips of this rank, and add the labels of the whole batch."""
        local = ranks.local_slice(len(picked.clip_ids))
        clip = self.source.finish(picked.clip_ids[local], picked.views[local], loaded)
        labels_B = torch.from_numpy(picked.labels).to(device, non_blocking=True)
        batch = Batch(clip, labels_B, torch.from_numpy(picked.rows).to(device, non_blocking=True))
        if self.kept_views is not None:
            batch = replace(batch, slots=picked.rows * self.kept_views + picked.turns % self.kept_views)
        if self.refined is not None:
            posteriors, accepted = self.refined.posteriors[picked.rows], self.refined.accepted[picked.rows]
            batch = replace(
                batch,
                posterior_BN=torch.from_numpy(posteriors).to(device, non_blocking=True),
                accepted_B=torch.from_numpy(accepted).to(device, non_blocking=True),
            )
        if ranks.count > 1 and (self.augment.mixup or self.augment.cutmix):  # it may mix clips of two ranks
            mixed = mix(replace(batch, clip_B3THW=ranks.gather(clip)), self.augment, self.seed, picked.epoch, step)
            return replace(mixed, clip_B3THW=mixed.clip_B3THW[local])
        return mix(batch, self.augment, self.seed, picked.epoch, step)

    def batches(
        self, phase: PhaseWork, phase_index: int, first: int, device: torch.device, ranks: Ranks = ALONE
    ) -> Generator[tuple[Batch, float]]:
        """The batches from step `first` on, loaded ahead, each with the seconds that the training spent on it. Each
        rank loads its local clips."""

        def load(step: int) -> tuple[Picked, list[Tensor]]:
            picked = self.pick(phase, phase_index, step)
            local = ranks.local_slice(len(picked.clip_ids))
            return picked, self.source.load(picked.clip_ids[local], picked.views[local])

        jobs: Generator[Callable[[], tuple[Picked, list[Tensor]]]] = (partial(load, step) for step in count(first))
        loading = ahead(jobs, self.workers) if self.source.loads else (job() for job in jobs)
        weights_N = self._class_weights(phase, device)
        with closing(loading):
            for step in count(first):
                started = time.monotonic()
                picked, tensors = next(loading)
                batch = self._finish(picked, tensors, step, device, ranks)
                yield replace(batch, class_weights_N=weights_N), time.monotonic() - started
