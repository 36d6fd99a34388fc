"""The modules of losses on logits and labels: exits of `ofa`, the memory of `elr`, the average of `mean_teacher`.

They are checkpointed with the adapters and never ship with the student.

Shape legend: B clips, C channels, T frames, H, W positions, N classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stagedkd import losses
from stagedkd.models.network import Network
from stagedkd.models.pointwise import Pointwise
from stagedkd.plan.kind import PhaseWork


class ResponseModules(nn.Module):
    """The modules that the losses of a hop on logits and labels need; none for most losses."""

    def __init__(
        self,
        phases: Sequence[PhaseWork] = (),
        channels: Mapping[int, int] | None = None,
        classes: int = 0,
        clips: int = 0,
        student: Network | None = None,
    ) -> None:
        """
        Args:
            phases: those of the hop. channels: the student's, by substage. classes: N. clips: number of training clips.
            student: initialised and on its device; its average begins with a copy.
        """
        super().__init__()
        uses = {name for phase in phases for name in phase.losses.named()}
        self.exits = nn.ModuleDict()
        if "ofa" in uses:
            self.exits = nn.ModuleDict({str(k): Exit(c, classes) for k, c in sorted((channels or {}).items())})
        self.memories = nn.ModuleDict({"elr": losses.ELR(clips=clips, classes=classes)} if "elr" in uses else {})
        self.averages = nn.ModuleDict()
        if "mean_teacher" in uses:
            assert student is not None, "the average is one of the student's weights"
            self.averages["student"] = Average(student)

    def modules_of(self, phase: PhaseWork) -> Iterator[nn.Module]:
        """The modules that a phase trains or writes. The average is not one: it always runs in `eval` mode."""
        if phase.losses.ofa:
            yield self.exits
        if phase.losses.elr:
            yield self.memories["elr"]

    def follow(self, student: Network, phase: PhaseWork) -> None:
        """Move the average of the weights, before a step."""
        if phase.losses.mean_teacher:
            average = self.averages["student"]
            assert isinstance(average, Average)
            average.follow(student, phase.losses.mean_teacher.decay)

    @property
    def average(self) -> Network:
        """The network whose weights are the average of the student's."""
        average = self.averages["student"]
        assert isinstance(average, Average)
        return average.network


class Exit(nn.Module):
    """An exit behind a substage: a separable convolution (3x3x3 for each channel, then 1x1x1 to twice the channels)
    with BatchNorm and ReLU, the mean over positions, and a linear layer. The exits of Hao et al. 2023 have one such
    block for each substage that follows; ours have one (our choice)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False),
            Pointwise(channels, 2 * channels),
            nn.BatchNorm3d(2 * channels),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, feat_BCTHW: Tensor) -> Tensor:
        """Return logits (B, N)."""
        return self.head(self.mix(feat_BCTHW).mean((2, 3, 4)))


class Average(nn.Module):
    """The exponential moving average of the student's weights (Tarvainen & Valpola 2017). Buffers, such as the
    statistics of BatchNorm, are copied."""

    steps: Tensor  # int64, how often it was moved

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, student: Network, decay: float) -> None:
        """Mix in the student's weights: in step k, from 0, the average keeps min(decay, 1 - 1 / (k + 1)). So the first
        step copies the student."""
        kept = (1 - 1 / (self.steps + 1)).clamp_max(decay)  # on the device, which nothing waits for
        for mean, current in zip(self.network.parameters(), student.parameters(), strict=True):
            mean.lerp_(current, 1 - kept)
        for mean, current in zip(self.network.buffers(), student.buffers(), strict=True):
            mean.copy_(current)
        self.steps += 1
