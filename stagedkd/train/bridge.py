"""What stands between student and teacher in training alone: projectors, fusions, contrasts. It never ships.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd import losses
from stagedkd.losses import pool_to
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import PROJECTED_LOSSES

SHARPNESS = 0.1  # temperature of the soft matching by correlation


@dataclass(frozen=True)
class Compared:
    """Two feature maps on one grid. `student` has its own channels where the pairing leaves them, `lifted` the
    teacher's; `rho` is the measured correlation of the pair, None where nothing asks for it."""

    student: Tensor
    lifted: Tensor | None
    teacher: Tensor
    rho: Tensor | None


class Bridge(nn.Module):
    """The trainable modules of a hop's pairs, and how pairs are made of feature maps."""

    def __init__(
        self,
        pairing: str = "pairs",
        phases: Sequence[PhaseWork] = (),
        student: Mapping[int, int] | None = None,
        teacher: Mapping[int, int] | None = None,
        clips: int = 0,
    ) -> None:
        """
        Args:
            pairing, phases: of the hop. student, teacher: channels by substage. clips: number of training clips (crd).
        """
        super().__init__()
        mine, theirs = student or {}, teacher or {}
        self.pairing = pairing
        pairs = sorted({pair for phase in phases if _lifts(pairing, phase) for pair in phase.pairs})
        self.lifts = nn.ModuleDict({_name(k, m): _projector(mine[k], theirs[m]) for k, m in pairs})
        self.fusions, self.contrasts = nn.ModuleDict(), nn.ModuleDict()
        if pairing == "review":
            fused = sorted({pair for phase in phases for pair in phase.pairs})
            middle = min(512, max((mine[k] for k, _ in fused), default=1))
            self.fusions = nn.ModuleDict({_name(k, m): Fusion(mine[k], middle, theirs[m]) for k, m in fused})
        for phase in phases:
            crd = phase.losses.crd
            if crd is None:
                continue
            k, m = phase.pairs[-1]
            if _name(k, m) not in self.contrasts:
                channels = mine[k] if pairing == "pairs" else theirs[m]
                self.contrasts[_name(k, m)] = losses.CRD(
                    clips=clips, student_channels=channels, teacher_channels=theirs[m], **crd.params
                )

    def modules_of(self, phase: PhaseWork) -> Iterator[nn.Module]:
        """The modules that a phase trains."""
        for k, m in phase.pairs:
            if _lifts(self.pairing, phase):
                yield self.lifts[_name(k, m)]
            if self.pairing == "review":
                yield self.fusions[_name(k, m)]
        if phase.losses.crd:
            yield self.contrast(phase)

    def contrast(self, phase: PhaseWork) -> nn.Module:
        """The contrast of a phase's deepest pair."""
        return self.contrasts[_name(*phase.pairs[-1])]

    def compare(
        self, phase: PhaseWork, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], rho_KM: Tensor | None
    ) -> list[Compared]:
        """The pairs of a phase from the feature maps by substage. `rho_KM`: measured correlations."""
        match self.pairing:
            case "pairs":
                return [self._pair(phase, k, m, student, teacher, rho_KM) for k, m in phase.pairs]
            case "correlation":
                assert rho_KM is not None, "the loop measures them"
                rows = {m: [k for k, other in phase.pairs if other == m] for m in sorted({m for _, m in phase.pairs})}
                return [self._mixture(ks, m, student, teacher, rho_KM) for m, ks in rows.items()]
            case _:
                return self._reviewed(phase.pairs, student, teacher, rho_KM)

    def _pair(
        self,
        phase: PhaseWork,
        k: int,
        m: int,
        student: Mapping[int, Tensor],
        teacher: Mapping[int, Tensor],
        rho_KM: Tensor | None,
    ) -> Compared:
        mine, theirs = losses.pool_to_common(student[k], teacher[m])
        lifted = self.lifts[_name(k, m)](mine) if _lifts(self.pairing, phase) else None
        return Compared(mine, lifted, theirs, None if rho_KM is None else rho_KM[k, m])

    def _mixture(
        self, ks: Sequence[int], m: int, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], rho_KM: Tensor
    ) -> Compared:
        """sum_k A[m, k] proj(F_k) with A[m, :] = softmax_k(rho[k, m] / 0.1) over the pairs that are allowed."""
        maps = [*(student[k] for k in ks), teacher[m]]
        grid = [min(sizes) for sizes in zip(*(list(f.shape[2:]) for f in maps), strict=True)]
        share_k = F.softmax(rho_KM[list(ks), m] / SHARPNESS, dim=0)
        mixed = torch.stack(
            [share * self.lifts[_name(k, m)](pool_to(student[k], grid)) for share, k in zip(share_k, ks, strict=True)]
        ).sum(0)
        return Compared(mixed, mixed, pool_to(teacher[m], grid), (share_k * rho_KM[list(ks), m]).sum())

    def _reviewed(
        self,
        pairs: Sequence[tuple[int, int]],
        student: Mapping[int, Tensor],
        teacher: Mapping[int, Tensor],
        rho_KM: Tensor | None,
    ) -> list[Compared]:
        """From deep to shallow, each fused with what came from the deeper ones."""
        found: list[Compared] = []
        deeper: Tensor | None = None
        for k, m in reversed(pairs):
            fused, deeper = self.fusions[_name(k, m)](student[k], deeper)
            mine, theirs = losses.pool_to_common(fused, teacher[m])
            found.append(Compared(mine, mine, theirs, None if rho_KM is None else rho_KM[k, m]))
        return found[::-1]


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion, Chen et al. 2021, in three dimensions: features and what comes from the deeper
    ones, weighted position by position by two attention maps."""

    def __init__(self, c_in: int, middle: int, c_out: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(c_in, middle, 1, bias=False), nn.BatchNorm3d(middle))
        self.attention = nn.Sequential(nn.Conv3d(2 * middle, 2, 1), nn.Sigmoid())
        self.leave = nn.Sequential(nn.Conv3d(middle, c_out, 3, padding=1, bias=False), nn.BatchNorm3d(c_out))

    def forward(self, feat_BCTHW: Tensor, deeper_BCTHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fused features with the teacher's channels, and those that the next shallower fusion is given."""
        here = self.enter(feat_BCTHW)
        if deeper_BCTHW is not None:
            deeper = F.interpolate(deeper_BCTHW, here.shape[2:], mode="nearest")
            share_B2THW = self.attention(torch.cat([here, deeper], 1))
            here = here * share_B2THW[:, :1] + deeper * share_B2THW[:, 1:]
        return self.leave(here), here


def pair_shares(compared: Sequence[Compared], kind: str) -> list[Tensor | float]:
    """Weights of the pairs, whose mean is 1: uniform, `trust` (softmax of rho) or `deficit` (softmax of -rho)."""
    if kind == "uniform":
        return [1.0] * len(compared)
    rho = torch.stack([pair.rho for pair in compared if pair.rho is not None])
    return list(len(rho) * F.softmax(rho if kind == "trust" else -rho, dim=0))


def _lifts(pairing: str, phase: PhaseWork) -> bool:
    """Whether a phase projects the student's channels: a mixture must, pairs do where a loss wants it."""
    if pairing == "correlation":
        return bool(phase.pairs)
    return pairing == "pairs" and bool(phase.losses.on(PROJECTED_LOSSES))


def _name(k: int, m: int) -> str:
    return f"{k + 1}-{m + 1}"


def _projector(student: int, teacher: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(student, teacher, 1, bias=False), nn.BatchNorm3d(teacher))
