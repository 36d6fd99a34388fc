"""Feature adapters: the modules between student and teacher that make feature maps comparable.

Projectors, fusions and contrasts are trained with the student and never ship with it.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd import losses
from stagedkd.losses import pool_to
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import PROJECTED
from stagedkd.train.exits import ResponseModules

MIXTURE_TEMPERATURE = 0.1  # of the softmax over correlations; lower is sharper

Pairing: TypeAlias = Literal["pairs", "correlation", "review"]
PairWeights: TypeAlias = Literal["uniform", "trust", "deficit"]


@dataclass(frozen=True)
class FeaturePair:
    """Two feature maps on one grid, (B, C, T, H, W).

    `student` has the student's channels, unless the pairing (correlation, review) has already given it the teacher's.
    `projected` has the teacher's channels; None if no loss needs it. `rho` is the measured correlation of the pair;
    None if nothing needs it.
    """

    student: Tensor
    projected: Tensor | None
    teacher: Tensor
    rho: Tensor | None


class FeatureAdapters(nn.Module):
    """The trainable modules of a hop, which make pairs of feature maps comparable."""

    def __init__(
        self,
        pairing: Pairing = "pairs",
        phases: Sequence[PhaseWork] = (),
        student_channels: Mapping[int, int] | None = None,
        teacher_channels: Mapping[int, int] | None = None,
        clips: int = 0,
        responses: ResponseModules | None = None,
    ) -> None:
        """
        Args:
            pairing, phases: those of the hop. student_channels, teacher_channels: by substage. clips: number of
                training clips, whose features `crd` remembers. responses: the modules of the losses on logits and
                labels.
        """
        super().__init__()
        student, teacher = student_channels or {}, teacher_channels or {}
        self.pairing: Pairing = pairing
        self.responses = ResponseModules() if responses is None else responses
        pairs = sorted({pair for phase in phases if _projects(pairing, phase) for pair in phase.pairs})
        self.projectors = nn.ModuleDict({_name(k, m): _projector(student[k], teacher[m]) for k, m in pairs})
        self.fusions, self.contrasts = nn.ModuleDict(), nn.ModuleDict()
        if pairing == "review":
            fused = sorted({pair for phase in phases for pair in phase.pairs})
            middle = min(512, max((student[k] for k, _ in fused), default=1))
            self.fusions = nn.ModuleDict({_name(k, m): Fusion(student[k], middle, teacher[m]) for k, m in fused})
        for phase in phases:
            crd = phase.losses.crd
            if crd is None:
                continue
            k, m = phase.pairs[-1]
            if _name(k, m) not in self.contrasts:
                channels = student[k] if pairing == "pairs" else teacher[m]
                self.contrasts[_name(k, m)] = losses.CRD(
                    clips=clips, student_channels=channels, teacher_channels=teacher[m], **crd.params
                )

    def modules_of(self, phase: PhaseWork) -> Iterator[nn.Module]:
        """The modules that a phase trains."""
        for k, m in phase.pairs:
            if _projects(self.pairing, phase):
                yield self.projectors[_name(k, m)]
            if self.pairing == "review":
                yield self.fusions[_name(k, m)]
        if phase.losses.crd:
            yield self.contrast(phase)
        yield from self.responses.modules_of(phase)

    def contrast(self, phase: PhaseWork) -> nn.Module:
        """The contrast of a phase's deepest pair."""
        return self.contrasts[_name(*phase.pairs[-1])]

    def make_pairs(
        self, phase: PhaseWork, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], rho_KM: Tensor | None
    ) -> list[FeaturePair]:
        """Make the pairs of a phase.

        Args:
            student, teacher: feature maps by substage. rho_KM: measured correlations, if the phase needs them.
        """
        match self.pairing:
            case "pairs":
                return [self._pair(phase, k, m, student, teacher, rho_KM) for k, m in phase.pairs]
            case "correlation":
                assert rho_KM is not None, "the loop measures them"
                rows = {m: [k for k, other in phase.pairs if other == m] for m in sorted({m for _, m in phase.pairs})}
                return [self._mixture(ks, m, student, teacher, rho_KM) for m, ks in rows.items()]
            case "review":
                return self._reviewed(phase.pairs, student, teacher, rho_KM)
            case _:
                assert_never(self.pairing)

    def _pair(
        self,
        phase: PhaseWork,
        k: int,
        m: int,
        student: Mapping[int, Tensor],
        teacher: Mapping[int, Tensor],
        rho_KM: Tensor | None,
    ) -> FeaturePair:
        student_map, teacher_map = losses.pool_to_common(student[k], teacher[m])
        projected = self.projectors[_name(k, m)](student_map) if _projects(self.pairing, phase) else None
        return FeaturePair(student_map, projected, teacher_map, None if rho_KM is None else rho_KM[k, m])

    def _mixture(
        self, ks: Sequence[int], m: int, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], rho_KM: Tensor
    ) -> FeaturePair:
        """Mix the student's maps for one teacher map: sum_k A[m, k] proj(F_k) with A[m, :] = softmax_k(rho[k, m] / 0.1)
        over the allowed pairs."""
        maps = [*(student[k] for k in ks), teacher[m]]
        grid = [min(sizes) for sizes in zip(*(list(f.shape[2:]) for f in maps), strict=True)]
        weights_k = F.softmax(rho_KM[list(ks), m] / MIXTURE_TEMPERATURE, dim=0)
        mixed = torch.stack(
            [
                weight * self.projectors[_name(k, m)](pool_to(student[k], grid))
                for weight, k in zip(weights_k, ks, strict=True)
            ]
        ).sum(0)
        return FeaturePair(mixed, mixed, pool_to(teacher[m], grid), (weights_k * rho_KM[list(ks), m]).sum())

    def _reviewed(
        self,
        pairs: Sequence[tuple[int, int]],
        student: Mapping[int, Tensor],
        teacher: Mapping[int, Tensor],
        rho_KM: Tensor | None,
    ) -> list[FeaturePair]:
        """Fuse from deep to shallow, each map with the features of the deeper ones."""
        reviewed: list[FeaturePair] = []
        deeper: Tensor | None = None
        for k, m in reversed(pairs):
            fused, deeper = self.fusions[_name(k, m)](student[k], deeper)
            student_map, teacher_map = losses.pool_to_common(fused, teacher[m])
            rho = None if rho_KM is None else rho_KM[k, m]
            reviewed.append(FeaturePair(student_map, student_map, teacher_map, rho))
        return reviewed[::-1]


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion, Chen et al. 2021, in three dimensions: the features of a map and those of the
    deeper maps, weighted at every position by two attention maps."""

    def __init__(self, c_in: int, middle: int, c_out: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(c_in, middle, 1, bias=False), nn.BatchNorm3d(middle))
        self.attention = nn.Sequential(nn.Conv3d(2 * middle, 2, 1), nn.Sigmoid())
        self.leave = nn.Sequential(nn.Conv3d(middle, c_out, 3, padding=1, bias=False), nn.BatchNorm3d(c_out))

    def forward(self, feat_BCTHW: Tensor, deeper_BCTHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fused features with the teacher's channels, and the features for the next shallower fusion."""
        fused = self.enter(feat_BCTHW)
        if deeper_BCTHW is not None:
            deeper = F.interpolate(deeper_BCTHW, fused.shape[2:], mode="nearest")
            weights_B2THW = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * weights_B2THW[:, :1] + deeper * weights_B2THW[:, 1:]
        return self.leave(fused), fused


def pair_weights(pairs: Sequence[FeaturePair], kind: PairWeights) -> list[Tensor | float]:
    """The weights of the pairs, with mean 1: uniform, `trust` (softmax of rho) or `deficit` (softmax of -rho)."""
    if kind == "uniform":
        return [1.0] * len(pairs)
    rho = torch.stack([pair.rho for pair in pairs if pair.rho is not None])
    assert len(rho) == len(pairs), "the loop measures the correlation of all pairs"
    return list(len(rho) * F.softmax(rho if kind == "trust" else -rho, dim=0))


def _projects(pairing: Pairing, phase: PhaseWork) -> bool:
    """Whether a phase projects the student's channels: a mixture always does, pairs do if a loss needs it."""
    if pairing == "correlation":
        return bool(phase.pairs)
    return pairing == "pairs" and bool(phase.losses.comparing(PROJECTED))


def _name(k: int, m: int) -> str:
    """The name of the modules of a pair, such as 1-2."""
    return f"{k + 1}-{m + 1}"


def _projector(student: int, teacher: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(student, teacher, 1, bias=False), nn.BatchNorm3d(teacher))
