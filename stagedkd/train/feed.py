"""Which clips a step sees: an endless row of permutations, so that every batch is full and any step can be named."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import permutation
from stagedkd.data.source import ClipSource
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import Augment


@dataclass(frozen=True)
class Feed:
    """Training clips: their numbers, their given labels (-1: none), where pixels come from, and the seed of order
    and views."""

    source: ClipSource
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    augment: Augment
    seed: int

    def steps(self, phase: PhaseWork) -> int:
        """Steps of an epoch: ceil(training clips / batch), whichever clips the losses use."""
        return -(-len(self.numbers) // phase.train.batch)

    def batch(self, phase: PhaseWork, number: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Batch `step` (from 0) of phase `number`: clips (B, 3, T, H, W) and labels (B,).

        A phase of `ce` alone cycles through the labelled clips; every other loss uses all.
        """
        chosen = np.arange(len(self.numbers))
        if set(phase.losses.named()) == {"ce"}:
            chosen = np.flatnonzero(self.labels >= 0)
        places = np.arange(step * phase.train.batch, (step + 1) * phase.train.batch)
        rounds = places // len(chosen)
        clips: list[Tensor] = []
        labels: list[npt.NDArray[np.int64]] = []
        for turn in np.unique(rounds).tolist():
            order = chosen[permutation(len(chosen), self.seed, 61, number, turn)]
            picked = order[places[rounds == turn] % len(chosen)]
            epoch = (number << 24) + turn  # a view is a function of (seed, epoch, clip number)
            clips.append(self.source.train(self.numbers[picked], self.augment, self.seed, epoch))
            labels.append(self.labels[picked])
        return torch.cat(clips), torch.from_numpy(np.concatenate(labels)).to(device)
