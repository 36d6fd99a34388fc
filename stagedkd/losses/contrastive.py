"""Contrastive losses, which remember the clips.

Shape legend: B clips of a batch, n clips of the training set, C channels, T frames, H, W positions, D embedding,
M one clip and its negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd.losses._precision import full_precision


class CRD(nn.Module):
    """Contrastive representation distillation, Tian et al. 2020 (section 3.2), with their memory of all clips.

    Each network's features are averaged over T, H, W, and embedded on the unit sphere by a linear layer. The student's
    embedding of a clip is held against the teacher's remembered embeddings of that clip and of others, and the other
    way round, by noise-contrastive estimation: log h(own) + sum log (1 - h(other)), negated, mean over the batch, where
    h = p / (p + M/n), p = exp(similarity / temperature) / Z, and Z is n times the mean of the first batch, then kept.

    It is trained with the student and never ships with it. The memories and Z are buffers, so that a checkpoint has
    them; they change in `train()` only. Two sides of n * D numbers are a lot for large sets: 246 MB for 240,000 clips.
    Negatives are drawn with replacement from torch's CPU generator whatever the device; the clip itself, which the
    authors' code may draw, is left out.

    Args:
        clips: n, how many clips the training set has; 2 or more.
        student_channels, teacher_channels: C of the maps.
        embedding: D.
        negatives: M - 1, 1 or more; not more than n - 1 are taken.
        temperature: above 0.
        momentum: share of the old in what is remembered, in [0, 1).
    Raises:
        ValueError: fewer than two clips.
    """

    student_memory: Tensor  # (n, D), unit rows
    teacher_memory: Tensor
    log_z: Tensor  # (2,), of the student's and the teacher's side; inf until the first batch

    def __init__(
        self,
        *,
        clips: int,
        student_channels: int,
        teacher_channels: int,
        embedding: int = 128,
        negatives: int = 256,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if clips < 2:
            raise ValueError(f"crd tells clips apart: {clips} has no other to be told from, give it two or more")
        self.clips, self.negatives = clips, min(negatives, clips - 1)
        self.temperature, self.momentum = temperature, momentum
        self.student_embedding = nn.Linear(student_channels, embedding)
        self.teacher_embedding = nn.Linear(teacher_channels, embedding)
        self.register_buffer("student_memory", F.normalize(torch.randn(clips, embedding), dim=1))
        self.register_buffer("teacher_memory", F.normalize(torch.randn(clips, embedding), dim=1))
        self.register_buffer("log_z", torch.full((2,), math.inf))

    @full_precision
    def forward(self, student_BCTHW: Tensor, teacher_BCTHW: Tensor, numbers_B: Tensor) -> Tensor:
        """The loss. The teacher's features get no gradient, its embedding does.

        Args:
            student_BCTHW, teacher_BCTHW: feature maps; channels and grids may differ.
            numbers_B: int64, which of the n clips these are, each 0..n-1; of one that is there twice the
                first is remembered.
        Raises:
            ValueError: the batches differ in size, channels are not those of the layers, or a number is out of range.
        """
        self._check(student_BCTHW, teacher_BCTHW, numbers_B)
        student_BD = _embed(self.student_embedding, student_BCTHW)
        teacher_BD = _embed(self.teacher_embedding, teacher_BCTHW.detach())
        chosen_BM = self.draw(numbers_B)
        logits_2BM = torch.stack(
            [
                torch.einsum("bmd,bd->bm", memory[chosen_BM].to(embedded_BD.dtype), embedded_BD) / self.temperature
                for memory, embedded_BD in ((self.teacher_memory, student_BD), (self.student_memory, teacher_BD))
            ]
        )
        found = logits_2BM.detach().flatten(1).logsumexp(1) - math.log(logits_2BM[0].numel() / self.clips)
        log_z = torch.where(self.log_z.isinf(), found, self.log_z.to(found.dtype))
        if self.training:
            self.log_z.copy_(log_z)
            self._remember(self.student_memory, numbers_B, student_BD)
            self._remember(self.teacher_memory, numbers_B, teacher_BD)
        # log of p / (M/n): in log space, since exp(1 / temperature) may be large
        odds_2BM = logits_2BM - log_z[:, None, None] - math.log(self.negatives / self.clips)
        own, others = F.logsigmoid(odds_2BM[..., 0]), F.logsigmoid(-odds_2BM[..., 1:]).sum(2)
        return -(own + others).mean(1).sum()

    def draw(self, numbers_B: Tensor) -> Tensor:
        """Each clip's own number, then those of its negatives, (B, M)."""
        others_BM = torch.randint(self.clips - 1, (len(numbers_B), self.negatives)).to(numbers_B.device)
        own_B1 = numbers_B[:, None]
        return torch.cat([own_B1, others_BM + (others_BM >= own_B1)], dim=1)

    @torch.no_grad()
    def _remember(self, memory_nD: Tensor, numbers_B: Tensor, embedded_BD: Tensor) -> None:
        mixed = self.momentum * memory_nD[numbers_B] + (1 - self.momentum) * embedded_BD
        # a batch over the end of a round may hold a clip twice: the first one is remembered, on every device
        places_B = torch.arange(len(numbers_B), device=numbers_B.device)
        first_BB = (numbers_B[:, None] == numbers_B[None]) & (places_B[None] < places_B[:, None])
        new_B = ~first_BB.any(1)
        memory_nD.index_copy_(0, numbers_B[new_B], F.normalize(mixed, dim=1)[new_B].to(memory_nD.dtype))

    def _check(self, student_BCTHW: Tensor, teacher_BCTHW: Tensor, numbers_B: Tensor) -> None:
        sizes = {"student": len(student_BCTHW), "teacher": len(teacher_BCTHW), "numbers": len(numbers_B)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"batches differ in size: {sizes}")
        for side, feat, layer in (
            ("student", student_BCTHW, self.student_embedding),
            ("teacher", teacher_BCTHW, self.teacher_embedding),
        ):
            if feat.shape[1] != layer.in_features:
                raise ValueError(f"the {side}'s map {tuple(feat.shape)} should have {layer.in_features} channels")
        if bool(((numbers_B < 0) | (numbers_B >= self.clips)).any()):
            raise ValueError(f"numbers of clips {numbers_B.tolist()} should be 0..{self.clips - 1}")


def _embed(layer: nn.Linear, feat_BCTHW: Tensor) -> Tensor:
    """Unit vectors (B, D), in the finer of both types."""
    feat_BC = feat_BCTHW.flatten(2).mean(2)
    dtype = torch.promote_types(feat_BC.dtype, layer.weight.dtype)
    raw_BD = F.linear(feat_BC.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    # shrunk first, so that squares of large features are finite: the unit vector and its gradient do not change
    return F.normalize(raw_BD / raw_BD.detach().abs().amax(1, keepdim=True).clamp_min(1), dim=1)
