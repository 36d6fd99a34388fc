"""Validation while a network trains: its accuracy and loss on validation clips, every few epochs.

It changes no weight and draws no random number, so a training gives the same bits with it and without.
"""

# pyright: reportUnknownMemberType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stagedkd.data.source import ClipSource
from stagedkd.data.views import fit_input
from stagedkd.models.network import Network, in_eval
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Input
from stagedkd.train.evaluate import logits_of

MOST = 256  # clips, so that large sets do not slow a training down
CLIPS_EACH = 4  # clips that are trained on for each one that is validated, where nobody says how often


@dataclass(frozen=True)
class Validation:
    """The clips that a training is validated on after every `every` epochs and at the end of each phase: their ids and
    labels (n,), in one plain view each."""

    source: ClipSource
    clip_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    every: int

    def is_due(self, phase: PhaseWork, epoch: int) -> bool:
        """Whether a phase validates after an epoch, counted from 1. One that trains no head never does."""
        return phase.head and (epoch % self.every == 0 or epoch == phase.run_epochs)

    def measure(
        self, network: Network, network_input: Input | None, batch: int, stopped: Callable[[], int | None]
    ) -> dict[str, Any] | None:
        """Measure `top1` (0..1), `loss` (the mean cross-entropy in nats) and the number of `clips`, in fp32 and in eval
        mode. The modes of the network are restored.

        Args:
            network_input: the input that the network takes from the view. batch: clips at once. stopped: gives the
                number of a signal that came, or None.
        Returns:
            None if a signal came meanwhile.
        """
        right, total = 0, 0.0
        with in_eval(network):
            for start in range(0, len(self.clip_ids), batch):
                if stopped() is not None:
                    return None
                logits_BN = self._logits(network, network_input, slice(start, start + batch))
                labels_B = torch.from_numpy(self.labels[start : start + batch])
                right += int((logits_BN.argmax(1) == labels_B).sum())
                total += float(cross_entropy(logits_BN, labels_B, reduction="sum"))
        count = len(self.clip_ids)
        return {"top1": right / count, "loss": total / count, "clips": count}

    def seconds(self, network: Network, network_input: Input | None, phase: PhaseWork) -> float:
        """The seconds that all validations of a phase will take, by two batches, of which the first warms up."""
        lap = 0.0
        with in_eval(network):
            for _ in range(2):
                started = time.monotonic()
                self._logits(network, network_input, slice(phase.train.batch))
                lap = time.monotonic() - started
        times = sum(self.is_due(phase, epoch) for epoch in range(1, phase.run_epochs + 1))
        return times * lap * len(self.clip_ids) / min(phase.train.batch, len(self.clip_ids))

    def _logits(self, network: Network, network_input: Input | None, rows: slice) -> Tensor:
        """The logits (B, N) of some clips, in float32 on the CPU."""
        (view_B3THW,) = self.source.views(self.clip_ids[rows].tolist(), 1, 1)
        return logits_of(network, fit_input(view_B3THW, network_input)).float().cpu()


def rarely(validated: int, trained: int) -> int:
    """The epochs between two validations, so that they take a small part of the time where an epoch has few clips. A
    clip takes about a third of the time of a training step's: its forward pass. So it is at most about an eighth, less
    with guides.

    Args:
        validated: clips of a validation. trained: clips of an epoch.
    """
    return max(1, round(CLIPS_EACH * validated / trained))


def some_of_each(
    clip_ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """At most `MOST` of the clips, in order, and their classes. Each class keeps its part: they are evenly spaced over
    the clips sorted by class, so the order in which a data set lists its clips does not matter.

    Args:
        clip_ids: (n,), rising. labels: their classes, (n,).
    """
    if len(clip_ids) <= MOST:
        return clip_ids, labels
    by_class = np.argsort(labels, kind="stable")
    kept = np.sort(by_class[np.linspace(0, len(clip_ids) - 1, MOST).round().astype(np.int64)])
    return clip_ids[kept], labels[kept]
