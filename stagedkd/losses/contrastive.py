"""Contrastive losses, which keep a memory of the training clips.

Shape legend: B clips of a batch, n clips of the training set, C channels, T frames, H, W positions, D embedding,
M a clip's positive and its negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagedkd.losses._clips import first_places
from stagedkd.losses._precision import full_precision


class CRD(nn.Module):
    """Contrastive representation distillation, Tian et al. 2020 (section 3.2), with their memory of all clips.

    Each network's features are averaged over T, H, W, and a linear layer embeds them on the unit sphere.
    Noise-contrastive estimation compares the student's embedding of a clip with the teacher's remembered embeddings of
    the same clip (the positive) and of others (the negatives), and the other way round. The loss is the mean over the
    batch of -(log h(positive) + sum log (1 - h(negative))), where h = p / (p + M/n) and
    p = exp(similarity / temperature) / Z. Z is n times the mean of the first batch and stays constant afterwards.

    The module is trained with the student and is not part of the trained network. The memories and Z are buffers, so
    that checkpoints contain them; they change in `train()` mode only. Two memories of n * D numbers are large for large
    sets: 246 MB for 240,000 clips. Negatives are drawn with replacement from torch's CPU generator on every device; the
    clip itself, which the authors' code may draw, is excluded.

    Args:
        clips: n, the number of training clips; 2 or more.
        student_channels, teacher_channels: C of the maps.
        embedding: D.
        negatives: M - 1, 1 or more; at most n - 1 are used.
        temperature: above 0.
        momentum: fraction of the old embedding in the updated memory, in [0, 1).
    Raises:
        ValueError: fewer than two clips.
    """

    student_memory: Tensor  # (n, D), unit rows
    teacher_memory: Tensor
    log_z: Tensor  # (2,), for the student's and the teacher's embeddings; inf until the first batch

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
            raise ValueError(f"crd contrasts clips: it needs two or more training clips, not {clips}")
        self.clips, self.negatives = clips, min(negatives, clips - 1)
        self.temperature, self.momentum = temperature, momentum
        self.student_embedding = nn.Linear(student_channels, embedding)
        self.teacher_embedding = nn.Linear(teacher_channels, embedding)
        self.register_buffer("student_memory", F.normalize(torch.randn(clips, embedding), dim=1))
        self.register_buffer("teacher_memory", F.normalize(torch.randn(clips, embedding), dim=1))
        self.register_buffer("log_z", torch.full((2,), math.inf))

    @full_precision
    def forward(self, student_BCTHW: Tensor, teacher_BCTHW: Tensor, rows_B: Tensor) -> Tensor:
        """Return the loss. The teacher's features get no gradient, the layer that embeds them does.

        Args:
            student_BCTHW, teacher_BCTHW: feature maps; channels and grids may differ.
            rows_B: int64, the rows of these clips among the n training clips, each 0..n-1. If a row occurs twice, its
                first clip is remembered.
        Raises:
            ValueError: the batches differ in size, or channels are not those of the layers.
            IndexError: a row is out of range; on a GPU, CUDA's error.
        """
        self._check(student_BCTHW, teacher_BCTHW, rows_B)
        student_BD = _embed(self.student_embedding, student_BCTHW)
        teacher_BD = _embed(self.teacher_embedding, teacher_BCTHW.detach())
        chosen_BM = self.draw(rows_B)
        logits_2BM = torch.stack(
            [
                torch.einsum("bmd,bd->bm", memory[chosen_BM].to(embedded_BD.dtype), embedded_BD) / self.temperature
                for memory, embedded_BD in ((self.teacher_memory, student_BD), (self.student_memory, teacher_BD))
            ]
        )
        first_log_z = logits_2BM.detach().flatten(1).logsumexp(1) - math.log(logits_2BM[0].numel() / self.clips)
        log_z = torch.where(self.log_z.isinf(), first_log_z, self.log_z.to(first_log_z.dtype))
        if self.training:
            self.log_z.copy_(log_z)
            self._remember(self.student_memory, rows_B, student_BD)
            self._remember(self.teacher_memory, rows_B, teacher_BD)
        # log of p / (M/n): in log space, since exp(1 / temperature) may be large
        odds_2BM = logits_2BM - log_z[:, None, None] - math.log(self.negatives / self.clips)
        positive, negatives = F.logsigmoid(odds_2BM[..., 0]), F.logsigmoid(-odds_2BM[..., 1:]).sum(2)
        return -(positive + negatives).mean(1).sum()

    def draw(self, rows_B: Tensor) -> Tensor:
        """Return the row of each clip, followed by the rows of its negatives: (B, M)."""
        negatives_BM = torch.randint(self.clips - 1, (len(rows_B), self.negatives), pin_memory=rows_B.is_cuda)
        negatives_BM = negatives_BM.to(rows_B.device, non_blocking=True)
        positive_B1 = rows_B[:, None]
        return torch.cat([positive_B1, negatives_BM + (negatives_BM >= positive_B1)], dim=1)

    @torch.no_grad()
    def _remember(self, memory_nD: Tensor, rows_B: Tensor, embedded_BD: Tensor) -> None:
        """Update the memory of these clips."""
        mixed = self.momentum * memory_nD[rows_B] + (1 - self.momentum) * embedded_BD
        # a batch across the end of a round may hold a clip twice: the first one is remembered, on every device
        memory_nD.index_copy_(0, rows_B, F.normalize(mixed, dim=1)[first_places(rows_B)].to(memory_nD.dtype))

    def _check(self, student_BCTHW: Tensor, teacher_BCTHW: Tensor, rows_B: Tensor) -> None:
        sizes = {"student": len(student_BCTHW), "teacher": len(teacher_BCTHW), "rows": len(rows_B)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"batches differ in size: {sizes}")
        for side, feat, layer in (
            ("student", student_BCTHW, self.student_embedding),
            ("teacher", teacher_BCTHW, self.teacher_embedding),
        ):
            if feat.shape[1] != layer.in_features:
                raise ValueError(f"the {side}'s map {tuple(feat.shape)} should have {layer.in_features} channels")


def _embed(layer: nn.Linear, feat_BCTHW: Tensor) -> Tensor:
    """Embed a map as unit vectors (B, D), in the more precise of both dtypes."""
    feat_BC = feat_BCTHW.flatten(2).mean(2)
    dtype = torch.promote_types(feat_BC.dtype, layer.weight.dtype)
    raw_BD = F.linear(feat_BC.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
    # scale down first, so that squares of large features stay finite; the unit vector and its gradient do not change
    return F.normalize(raw_BD / raw_BD.detach().abs().amax(1, keepdim=True).clamp_min(1), dim=1)
