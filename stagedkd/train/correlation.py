"""Correlation of substages: debiased linear CKA of both networks' features over a probe set.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W positions; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagedkd.data.source import ClipSource
from stagedkd.data.views import fit_input
from stagedkd.losses import pool_to_common
from stagedkd.losses.relation import u_centred
from stagedkd.models.network import Network, in_eval
from stagedkd.plan.kind import Cut
from stagedkd.spec.schema import Input

CLIPS, BATCH, FEWEST = 256, 32, 4


@dataclass(frozen=True)
class Probe:
    """Measures correlation between a student and a frozen teacher. `cuts` and `inputs` are those of both networks
    (student, teacher); `clip_ids` are fixed training clips, used in their plain view and without labels."""

    source: ClipSource
    clip_ids: Sequence[int]
    teacher: Network
    cuts: tuple[Cut, Cut]
    inputs: tuple[Input | None, Input | None]

    @property
    def batches(self) -> list[Sequence[int]]:
        """The batches that are large enough for the estimator."""
        starts = range(0, len(self.clip_ids), BATCH)
        return [part for at in starts if len(part := self.clip_ids[at : at + BATCH]) >= FEWEST]

    def correlation(self, student: Network) -> Tensor:
        """Measure rho (K, M) in float32, in 0..1, on the CPU: debiased linear CKA of every student substage with every
        teacher substage. Each pair is pooled to its common grid, and its HSIC terms are averaged over batches of 32
        clips (Nguyen et al. 2021).

        Both networks run in eval mode without gradients; their modes are restored.

        Raises:
            ValueError: there are fewer than four clips.
        """
        if not self.batches:
            raise ValueError(f"correlation of substages needs {FEWEST} training clips, not {len(self.clip_ids)}")
        student_ends, teacher_ends = ([run[-1] for run in cut] for cut in self.cuts)
        sums = torch.zeros(3, len(student_ends), len(teacher_ends), dtype=torch.float64)
        with in_eval(student), in_eval(self.teacher):
            for clip_ids in self.batches:
                (view_B3THW,) = self.source.views(list(clip_ids), 1, 1)
                student_view, teacher_view = (fit_input(view_B3THW, each) for each in self.inputs)
                student_maps, _ = student.run(student_view, taps=tuple(student_ends), head=False)
                teacher_maps, _ = self.teacher.run(teacher_view, taps=tuple(teacher_ends), head=False)
                for k, a in enumerate(student_ends):
                    for m, b in enumerate(teacher_ends):
                        sums[:, k, m] += _hsic_terms(student_maps[a], teacher_maps[b])
        between, within_s, within_t = sums
        rho = between / (within_s * within_t).clamp_min(0).sqrt().clamp_min(1e-12)
        return rho.clamp(0, 1).float()


def _hsic_terms(student_BCTHW: Tensor, teacher_BCTHW: Tensor) -> Tensor:
    """Debiased HSIC (Song et al. 2012) of the pair, of the student and of the teacher with itself, (3,) in float64."""
    flat = [f.float().flatten(1) for f in pool_to_common(student_BCTHW, teacher_BCTHW)]
    one, two = (u_centred((centred @ centred.T).cpu().double()) for centred in (f - f.mean(0) for f in flat))
    count = len(one) * (len(one) - 3)
    return torch.stack([(one * two).sum(), one.square().sum(), two.square().sum()]) / count
