"""Feature adapters: the modules between student and teacher that make feature maps comparable.

Projectors, fusions and contrasts are trained with the student and never ship with it.

Shape legend: B clips, C channels, T frames, H, W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd import losses
from stagedkd.losses import pool_to
from stagedkd.models.pointwise import Pointwise
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.pairing import MIXED, graft_pairs
from stagedkd.spec.schema import EMBEDDED, FEATURES, GRAFT, PROJECTED, Loss
from stagedkd.train.exits import ResponseModules
from stagedkd.train.maps import TeacherMap, grid_of, on_grid
from stagedkd.train.mixture import Shares, mixture_shares

EMBEDDED_NAME = "embedding"  # of the modules on the pooled features in front of the heads

Pairing: TypeAlias = Literal["pairs", "correlation", "mixed", "review"]
PairWeights: TypeAlias = Literal["uniform", "trust", "deficit"]


@dataclass(frozen=True)
class FeaturePair:
    """Two feature maps on one grid, (B, C, T, H, W); of the teacher's map perhaps only what was kept.

    `student` has the student's channels, unless the pairing (correlation, mixed, review) has already given it the
    teacher's. `projected` has the teacher's channels; None if no loss needs it. `rho` is the measured correlation of
    the pair; None if nothing needs it.
    """

    student: Tensor
    projected: Tensor | None
    teacher: TeacherMap
    rho: Tensor | None

    def teacher_for(self, loss: Loss) -> Tensor | losses.Gaussians:
        """The teacher's part of the pair as a loss compares it."""
        return self.teacher if isinstance(self.teacher, Tensor) else self.teacher.gaussians(loss)


class FeatureAdapters(nn.Module):
    """The trainable modules of a hop, which make pairs of feature maps comparable."""

    def __init__(
        self,
        pairing: Pairing = "pairs",
        phases: Sequence[PhaseWork] = (),
        student_channels: Mapping[int, int] | None = None,
        teacher_channels: Mapping[int, int] | None = None,
        clips: int = 0,
        *,
        widths: tuple[int, int] = (0, 0),
        responses: ResponseModules | None = None,
    ) -> None:
        """
        Args:
            pairing, phases: those of the hop. student_channels, teacher_channels: by substage. clips: number of
                training clips, whose features `crd` remembers. widths: channels of the pooled features in front of the
                heads of student and teacher. responses: the modules of the losses on logits and labels.
        """
        super().__init__()
        student, teacher = student_channels or {}, teacher_channels or {}
        self.pairing: Pairing = pairing
        self.cuts = len(student), len(teacher)
        self.responses = ResponseModules() if responses is None else responses
        pairs = sorted({pair for phase in phases for pair in self._projected_pairs(phase)})
        self.projectors = nn.ModuleDict({_name(k, m): _projector(student[k], teacher[m]) for k, m in pairs})
        self.fusions, self.contrasts = nn.ModuleDict(), nn.ModuleDict()
        if pairing == "review":
            fused = sorted({pair for phase in phases for pair in phase.pairs})
            middle = min(512, max((student[k] for k, _ in fused), default=1))
            self.fusions = nn.ModuleDict({_name(k, m): Fusion(student[k], middle, teacher[m]) for k, m in fused})
        for phase in phases:
            crd = phase.losses.crd
            if crd is None or _contrast_name(phase) in self.contrasts:
                continue
            channels = widths
            if crd.compared not in EMBEDDED:
                k, m = phase.pairs[-1]
                channels = student[k] if pairing == "pairs" else teacher[m], teacher[m]
            sizes = dict(zip(("student_channels", "teacher_channels"), channels, strict=True))
            self.contrasts[_contrast_name(phase)] = losses.CRD(clips=clips, **sizes, **crd.params)
        if any(phase.losses.comparing({"projected_embedding"}) for phase in phases):
            self.projectors[EMBEDDED_NAME] = _projector(*widths)

    def modules_of(self, phase: PhaseWork) -> Iterator[nn.Module]:
        """The modules that a phase trains."""
        for k, m in self._projected_pairs(phase):
            yield self.projectors[_name(k, m)]
        if self.pairing == "review":
            for k, m in phase.pairs:
                yield self.fusions[_name(k, m)]
        if phase.losses.comparing({"projected_embedding"}):
            yield self.projectors[EMBEDDED_NAME]
        if phase.losses.crd:
            yield self.contrast(phase)
        yield from self.responses.modules_of(phase)

    def _projected_pairs(self, phase: PhaseWork) -> Sequence[tuple[int, int]]:
        """The pairs whose projectors a phase uses."""
        if _projects(self.pairing, phase):
            return phase.pairs
        return graft_pairs(phase.pairs, *self.cuts) if phase.losses.graft else ()

    def contrast(self, phase: PhaseWork) -> nn.Module:
        """The contrast of a phase: of its deepest pair, or of the embeddings."""
        return self.contrasts[_contrast_name(phase)]

    def grafted(self, k: int, m: int, student_BCTHW: Tensor, grid: Sequence[int]) -> Tensor:
        """Turn the map of student substage k into one in the place of teacher substage m's: ReLU(P_k(F)) with the
        projector of the pair, on the teacher's grid (T, H, W). Axes that are longer than the teacher's are averaged
        down, shorter ones repeat the nearest position."""
        smaller = [min(a, b) for a, b in zip(student_BCTHW.shape[2:], grid, strict=True)]
        fitted = pool_to(student_BCTHW, smaller)
        if smaller != list(grid):
            fitted = F.interpolate(fitted, list(grid), mode="nearest")
        return F.relu(self.projectors[_name(k, m)](fitted))

    def embedded(self, student_BC111: Tensor) -> Tensor:
        """Project the student's pooled feature to the teacher's channels."""
        return self.projectors[EMBEDDED_NAME](student_BC111)

    def make_pairs(
        self, phase: PhaseWork, student: Mapping[int, Tensor], teacher: Mapping[int, TeacherMap], rho_KM: Tensor | None
    ) -> list[FeaturePair]:
        """Make the pairs of a phase.

        Args:
            student, teacher: feature maps by substage. rho_KM: measured correlations, if the phase needs them.
        """
        match self.pairing:
            case "pairs":
                return [self._pair(phase, k, m, student, teacher, rho_KM) for k, m in phase.pairs]
            case "correlation" | "mixed":
                rows = mixture_shares(phase.pairs, self._measured(rho_KM))
                return [self._mixture(shares, m, student, teacher, rho_KM) for m, shares in rows.items()]
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
        teacher: Mapping[int, TeacherMap],
        rho_KM: Tensor | None,
    ) -> FeaturePair:
        student_map, teacher_map = _on_common_grid(student[k], teacher[m])
        projected = self.projectors[_name(k, m)](student_map) if _projects(self.pairing, phase) else None
        return FeaturePair(student_map, projected, teacher_map, None if rho_KM is None else rho_KM[k, m])

    def _measured(self, rho_KM: Tensor | None) -> list[list[float]]:
        """The correlations that the shares of the mixtures follow: under `mixed` all alike, for equal shares."""
        if self.pairing == "mixed":
            students, teachers = self.cuts
            return [[0.0] * teachers] * students
        assert rho_KM is not None, "the loop measures them"
        return cast(list[list[float]], rho_KM.tolist())  # pyright: ignore[reportUnknownMemberType]

    def _mixture(
        self,
        shares: Shares,
        m: int,
        student: Mapping[int, Tensor],
        teacher: Mapping[int, TeacherMap],
        rho_KM: Tensor | None,
    ) -> FeaturePair:
        """Mix the student's maps for one teacher map: sum_k A[m, k] proj(F_k), by the shares A of `mixture_shares`."""
        grids = [*(tuple(student[k].shape[2:]) for k in shares), grid_of(teacher[m])]
        grid = [min(sizes) for sizes in zip(*grids, strict=True)]
        mixed = torch.stack(
            [share * self.projectors[_name(k, m)](pool_to(student[k], grid)) for k, share in shares.items()]
        ).sum(0)
        rho = None if rho_KM is None else torch.stack([share * rho_KM[k, m] for k, share in shares.items()]).sum()
        return FeaturePair(mixed, mixed, on_grid(teacher[m], grid), rho)

    def _reviewed(
        self,
        pairs: Sequence[tuple[int, int]],
        student: Mapping[int, Tensor],
        teacher: Mapping[int, TeacherMap],
        rho_KM: Tensor | None,
    ) -> list[FeaturePair]:
        """Fuse from deep to shallow, each map with the features of the deeper ones."""
        reviewed: list[FeaturePair] = []
        deeper: Tensor | None = None
        for k, m in reversed(pairs):
            fused, deeper = self.fusions[_name(k, m)](student[k], deeper)
            student_map, teacher_map = _on_common_grid(fused, teacher[m])
            rho = None if rho_KM is None else rho_KM[k, m]
            reviewed.append(FeaturePair(student_map, student_map, teacher_map, rho))
        return reviewed[::-1]


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion, Chen et al. 2021, in three dimensions: the features of a map and those of the
    deeper maps, weighted at every position by two attention maps."""

    def __init__(self, c_in: int, middle: int, c_out: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(Pointwise(c_in, middle), nn.BatchNorm3d(middle))
        self.attention = nn.Sequential(Pointwise(2 * middle, 2, bias=True), nn.Sigmoid())
        self.leave = nn.Sequential(nn.Conv3d(middle, c_out, 3, padding=1, bias=False), nn.BatchNorm3d(c_out))

    def forward(self, feat_BCTHW: Tensor, deeper_BCTHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fused features with the teacher's channels, and the features for the next shallower fusion."""
        fused = self.enter(feat_BCTHW)
        if deeper_BCTHW is not None:
            deeper = F.interpolate(deeper_BCTHW, fused.shape[2:], mode="nearest")
            weights_B2THW = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * weights_B2THW[:, :1] + deeper * weights_B2THW[:, 1:]
        return self.leave(fused), fused


def _on_common_grid(student_BCTHW: Tensor, teacher: TeacherMap) -> tuple[Tensor, TeacherMap]:
    """Average both maps down to the element-wise minimum of their grids (T, H, W)."""
    grid = [min(a, b) for a, b in zip(student_BCTHW.shape[2:], grid_of(teacher), strict=True)]
    return pool_to(student_BCTHW, grid), on_grid(teacher, grid)


def pair_weights(pairs: Sequence[FeaturePair], kind: PairWeights) -> list[Tensor | float]:
    """The weights of the pairs, with mean 1: uniform, `trust` (softmax of rho) or `deficit` (softmax of -rho)."""
    if kind == "uniform":
        return [1.0] * len(pairs)
    rho = torch.stack([pair.rho for pair in pairs if pair.rho is not None])
    assert len(rho) == len(pairs), "the loop measures the correlation of all pairs"
    return list(len(rho) * F.softmax(rho if kind == "trust" else -rho, dim=0))


def _projects(pairing: Pairing, phase: PhaseWork) -> bool:
    """Whether a phase projects the student's channels: a mixture always does, pairs do if a loss needs it."""
    if pairing in MIXED:
        return bool(phase.losses.comparing(FEATURES - GRAFT)) and bool(phase.pairs)
    return pairing == "pairs" and bool(phase.losses.comparing(PROJECTED))


def _contrast_name(phase: PhaseWork) -> str:
    """The name of the contrast of a phase."""
    assert phase.losses.crd is not None
    return EMBEDDED_NAME if phase.losses.crd.compared in EMBEDDED else _name(*phase.pairs[-1])


def _name(k: int, m: int) -> str:
    """The name of the modules of a pair, such as 1-2."""
    return f"{k + 1}-{m + 1}"


def _projector(student: int, teacher: int) -> nn.Module:
    return nn.Sequential(Pointwise(student, teacher), nn.BatchNorm3d(teacher))
