"""Guides: what teaches the student in a hop: a live network, the kept outputs of one (train/kept.py), or a table.

Shape legend: B clips of the whole batch, C channels, T frames, H, W positions, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stagedkd.data.draws import Stream, uniform
from stagedkd.data.mix import Batch
from stagedkd.models.network import EMBEDDING
from stagedkd.spec.schema import Input
from stagedkd.train.maps import TeacherMap
from stagedkd.train.ranks import Ranks

Forward: TypeAlias = Callable[..., tuple[dict[str, Tensor], Tensor | None]]  # `Network.run`, compiled or not
ForwardFrom: TypeAlias = Callable[[Tensor, str], Tensor]  # `Network.run_from`, compiled or not


@dataclass(frozen=True)
class GuideOutputs:
    """The outputs of a guide for the whole batch, without gradients: feature maps (B, C, T, H, W) by block name, or
    what was kept of them, and logits (B, N) or None."""

    maps: Mapping[str, TeacherMap] = field(default_factory=dict[str, TeacherMap])
    logits: Tensor | None = None

    def shuffled(self) -> GuideOutputs:
        """Give each clip the outputs of the previous clip of the batch."""
        maps = {name: m.roll(1, 0) if isinstance(m, Tensor) else m.shuffled() for name, m in self.maps.items()}
        return GuideOutputs(maps, None if self.logits is None else self.logits.roll(1, 0))


class Guide(Protocol):
    """A source of feature maps and logits that teaches the student. `weight` is its weight among several guides."""

    @property
    def weight(self) -> float: ...

    def outputs(self, batch: Batch, maps: Sequence[str], logits: bool) -> GuideOutputs:
        """Give the outputs for a batch.

        Args:
            batch: with several ranks, its clips are this rank's local ones; labels and rows are of the whole batch.
            maps: the blocks whose feature maps are needed. logits: whether logits are needed.
        """
        ...


@dataclass(frozen=True)
class LiveGuide:
    """A frozen network that runs in every step. Each rank runs it on its local clips; the outputs are gathered.

    `run_from`, if given, continues from the student's features (`graft`), of the whole batch on every rank.
    """

    run: Forward
    input: Input | None = None
    weight: float = 1.0
    ranks: Ranks = field(default_factory=Ranks)
    run_from: ForwardFrom | None = None

    def outputs(self, batch: Batch, maps: Sequence[str], logits: bool) -> GuideOutputs:
        with torch.no_grad():
            local_maps, local_logits = self.run(batch.view(self.input), upto=None, taps=tuple(maps), head=logits)
        whole_logits = None if local_logits is None else self.ranks.gather(local_logits)
        return GuideOutputs(self.ranks.gather_maps(local_maps), whole_logits)


@dataclass(frozen=True)
class TableGuide:
    """Logits of the training clips (n, N) or their embeddings (n, C) from a table, by row: a teacher from elsewhere. A
    clip has the same outputs in every view. For a mixed clip, the probabilities or the embeddings of its two clips are
    mixed as the clips are."""

    logits_nN: Tensor | None = None
    embeddings_nC: Tensor | None = None
    weight: float = 1.0

    def outputs(self, batch: Batch, maps: Sequence[str], logits: bool) -> GuideOutputs:
        assert batch.rows_B is not None
        embedded: dict[str, Tensor] = {}
        for tap in maps:
            assert tap == EMBEDDING and self.embeddings_nC is not None, "check_rules refuses losses on other features"
            feat_BC = self.embeddings_nC[batch.rows_B]
            feat_BC = feat_BC if batch.order_B is None else _mixed(feat_BC, batch.order_B, batch.fraction)
            embedded[tap] = feat_BC[:, :, None, None, None]
        if not logits:
            return GuideOutputs(embedded)
        assert self.logits_nN is not None, "check_rules refuses losses on logits with embeddings"
        logits_BN = self.logits_nN[batch.rows_B]
        if batch.order_B is not None:
            p_BN = _mixed(logits_BN.log_softmax(1).exp(), batch.order_B, batch.fraction)
            logits_BN = p_BN.clamp_min(1e-30).log()
        return GuideOutputs(embedded, logits_BN)


def _mixed(values_BN: Tensor, order_B: Tensor, fraction: float) -> Tensor:
    """Mix each row with the row that `order_B` names."""
    return fraction * values_BN + (1 - fraction) * values_BN[order_B]


def drawn_guides(drop: float, count: int, seed: int, step: int) -> frozenset[int]:
    """Draw the guides, out of `count`, whose logits are used in a step. Each is left out with chance `drop`, and at
    least one stays (DGKD, Son et al. 2021)."""
    if not drop:
        return frozenset(range(count))
    draws = uniform(seed, Stream.GUIDES_DROPPED, step, np.arange(count + 1))
    drawn = frozenset(i for i in range(count) if draws[i] >= drop)
    return drawn or frozenset({int(draws[count] * count)})
