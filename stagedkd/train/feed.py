"""Which clips a step sees: an endless row of permutations, so that every batch is full and any step can be named."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import Stream, permutation
from stagedkd.data.mix import Batch, mix
from stagedkd.data.source import ClipSource, ahead
from stagedkd.data.views import View
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import Augment
from stagedkd.train.ranks import Ranks

ALONE = Ranks()


@dataclass(frozen=True)
class Picked:
    """The clips of a step: their rows among the training clips, numbers, views and labels, and the epoch in which the
    step begins."""

    rows: npt.NDArray[np.int64]
    numbers: list[int]
    views: list[View]
    labels: npt.NDArray[np.int64]
    epoch: int


@dataclass(frozen=True)
class Refined:
    """Refined labels of the training clips: posteriors (n, N) float32, and which of them are accepted (n,)."""

    posteriors: npt.NDArray[np.float32]
    accepted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Feed:
    """Training clips: their numbers, their given labels (-1: none), where pixels come from, how they are augmented, the
    seed of order and views, how many views of a clip exist (None: no end), how many threads load ahead, and refined
    labels, where there are any."""

    source: ClipSource
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    augment: Augment
    seed: int
    view_count: int | None = None
    workers: int = 1
    refined: Refined | None = None

    def steps(self, phase: PhaseWork) -> int:
        """Steps of an epoch: ceil(training clips / batch), whichever clips the losses use."""
        return -(-len(self.numbers) // phase.train.batch)

    def pick(self, phase: PhaseWork, number: int, step: int) -> Picked:
        """The clips of step `step` (from 0) of phase `number`.

        A phase of `ce` alone cycles through the labelled clips; every other loss uses all.
        """
        chosen = np.arange(len(self.numbers))
        if set(phase.losses.named()) == {"ce"}:
            chosen = np.flatnonzero(self.labels >= 0)
        places = np.arange(step * phase.train.batch, (step + 1) * phase.train.batch)
        rounds = places // len(chosen)
        orders = {
            turn: chosen[permutation(len(chosen), self.seed, Stream.ORDER, number, turn)]
            for turn in set(rounds.tolist())
        }
        rows = np.array([orders[turn][at % len(chosen)] for turn, at in zip(rounds.tolist(), places, strict=True)])
        numbers = self.numbers[rows].tolist()
        views = [
            self.source.train_view(clip, self.augment, self.seed, self._epoch(number, turn))
            for clip, turn in zip(numbers, rounds.tolist(), strict=True)
        ]
        return Picked(rows, numbers, views, self.labels[rows], self._epoch(number, int(rounds[0])))

    def _epoch(self, phase: int, turn: int) -> int:
        """The number by which views are drawn; where views are finite, phases share them."""
        return turn % self.view_count if self.view_count else (phase << 24) + turn

    def batch(self, phase: PhaseWork, number: int, step: int, device: torch.device) -> Batch:
        """Step `step` of phase `number`, made at once: clips in 0..1 and labels."""
        picked = self.pick(phase, number, step)
        return self._finish(picked, self.source.load(picked.numbers, picked.views), step, device, ALONE)

    def _finish(self, picked: Picked, loaded: list[Tensor], step: int, device: torch.device, ranks: Ranks) -> Batch:
        own = ranks.own(len(picked.numbers))
        clip = self.source.finish(picked.numbers[own], picked.views[own], loaded)
        batch = Batch(clip, torch.from_numpy(picked.labels).to(device), torch.from_numpy(picked.rows).to(device))
        if self.refined is not None:
            posteriors, accepted = self.refined.posteriors[picked.rows], self.refined.accepted[picked.rows]
            batch = replace(
                batch,
                posterior_BN=torch.from_numpy(posteriors).to(device),
                accepted_B=torch.from_numpy(accepted).to(device),
            )
        if ranks.count > 1 and (self.augment.mixup or self.augment.cutmix):  # partners may be of another rank's share
            mixed = mix(replace(batch, clip_B3THW=ranks.gather(clip)), self.augment, self.seed, picked.epoch, step)
            return replace(mixed, clip_B3THW=mixed.clip_B3THW[own])
        return mix(batch, self.augment, self.seed, picked.epoch, step)

    def batches(
        self, phase: PhaseWork, number: int, first: int, device: torch.device, ranks: Ranks = ALONE
    ) -> Generator[tuple[Batch, float]]:
        """The batches from step `first` on, loaded ahead, each with the seconds that were spent making it. Of several
        ranks each loads its share of the clips."""

        def loaded(step: int) -> tuple[Picked, list[Tensor]]:
            picked = self.pick(phase, number, step)
            own = ranks.own(len(picked.numbers))
            return picked, self.source.load(picked.numbers[own], picked.views[own])

        jobs: Generator[Callable[[], tuple[Picked, list[Tensor]]]] = (partial(loaded, step) for step in count(first))
        row = ahead(jobs, self.workers) if self.source.loads else (job() for job in jobs)
        with closing(row):
            for step in count(first):
                started = time.monotonic()
                picked, tensors = next(row)
                batch = self._finish(picked, tensors, step, device, ranks)
                yield batch, time.monotonic() - started
