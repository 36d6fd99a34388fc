"""What a training step uses: networks, options, and the time of the step.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.spec.schema import FileLoss, Input, Loss
from stagedkd.train.adapters import FeatureAdapters, PairWeights
from stagedkd.train.guides import Forward, Guide
from stagedkd.train.kept import KeptPrefix
from stagedkd.train.ranks import Ranks

UserLoss: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class StepModel:
    """The student as a step uses it: its `run`, compiled or not, the input that it takes from the shared view, and the
    kept output of its frozen blocks, if there is one."""

    run: Forward
    input: Input | None = None
    prefix: KeptPrefix | None = None

    def start(self, batch: Batch) -> tuple[Tensor, str | None]:
        """Give what a run on the plain view starts from: the clips and None, or a kept map and the block before."""
        output = None if self.prefix is None else self.prefix.output(batch)
        if self.prefix is None or output is None:
            return batch.view(self.input), None
        return output, self.prefix.block


@dataclass(frozen=True)
class DistillOptions:
    """The options that hold for all phases of a hop; see `DistillWork`. `seed` draws the guides that are dropped and
    the strong views."""

    drop: float = 0.0
    shuffle: bool = False
    pair_weights: PairWeights = "uniform"
    seed: int = 0


@dataclass(frozen=True)
class StepModels:
    """The modules that a step uses. `guides`: the teacher, then further guides, whose logits alone are used;
    `user_losses`: the user's own losses, by file; `ranks`: the processes that share the batch; `clip_weights`: weights
    of the training clips (n,), by the file of their table."""

    student: StepModel
    guides: tuple[Guide, ...]
    adapters: FeatureAdapters
    device: torch.device
    options: DistillOptions = field(default_factory=DistillOptions)
    user_losses: Mapping[str, UserLoss] = field(default_factory=dict[str, UserLoss])
    ranks: Ranks = field(default_factory=Ranks)
    clip_weights: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class StepInfo:
    """The time of a step: the number of the phase, the epoch in it (with fractions), and the step in the whole
    training. Also the measured correlation of substages (K, M), if the phase needs it."""

    phase: int = 0
    epoch: float = 0.0
    step: int = 0
    rho_KM: Tensor | None = None


def loss_function(models: StepModels, name: str, loss: Loss) -> Callable[..., Tensor]:
    """The function of a loss on logits or pairs, with its parameters: the user's own, or one of `losses`."""
    if name == "file":
        user_loss = cast(FileLoss, loss)
        return partial(models.user_losses[user_loss.path], **user_loss.args)
    return partial(losses.FUNCTIONS[name], **loss.params)
