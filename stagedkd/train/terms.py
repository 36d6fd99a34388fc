"""The unweighted losses of one step: run the student and its guides as far as the phase needs, then compute each loss.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from stagedkd import losses
from stagedkd.data.mix import Batch, as_input, strong_view
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import LOGITS, PAIRED, FileLoss, Input, Loss, Losses
from stagedkd.train.adapters import FeatureAdapters, FeaturePair, PairWeights, pair_weights
from stagedkd.train.guides import Forward, Guide, kept_guides
from stagedkd.train.phases import ForwardPlan
from stagedkd.train.ranks import Ranks
from stagedkd.train.schedule import ramp

UserLoss: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class StepModel:
    """The student as a step uses it: its `run`, compiled or not, and the input that it takes from the shared view."""

    run: Forward
    input: Input | None = None


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
    `user_losses`: the user's own losses, by file; `ranks`: the processes that share the batch."""

    student: StepModel
    guides: tuple[Guide, ...]
    adapters: FeatureAdapters
    device: torch.device
    options: DistillOptions = field(default_factory=DistillOptions)
    user_losses: Mapping[str, UserLoss] = field(default_factory=dict[str, UserLoss])
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class StepInfo:
    """The time of a step: the number of the phase, the epoch in it (with fractions), and the step in the whole
    training. Also the measured correlation of substages (K, M), if the phase needs it."""

    phase: int = 0
    epoch: float = 0.0
    step: int = 0
    rho_KM: Tensor | None = None


def step_losses(
    models: StepModels, phase: PhaseWork, plan: ForwardPlan, batch: Batch, info: StepInfo
) -> dict[str, Tensor]:
    """Compute the unweighted losses of a step by name, in the order of the schema.

    Losses on pairs are means over the pairs, weighted by the hop's `pair_weights` and the phase's `ramp`. With several
    ranks, each rank has the losses of the whole batch: networks run on its local clips, and their outputs are gathered.
    """
    taps = tuple(plan.student_taps.values())
    student_maps, student_BN = _run_student(
        models, batch.view(models.student.input), info, 0, upto=plan.student_end, taps=taps, head=phase.head
    )
    teacher_maps, guide_logits = _run_guides(models, plan, batch, info)
    parts: dict[str, Tensor] = {}
    if phase.pairs:
        student = {k: student_maps[name] for k, name in plan.student_taps.items()}
        teacher = {m: teacher_maps[name] for m, name in plan.teacher_taps.items()}
        pairs = models.adapters.make_pairs(phase, student, teacher, info.rho_KM)
        parts |= _feature_losses(models, phase, pairs, batch, info)
        if phase.losses.stage_cka:
            rows = one_to_one(phase.pairs, info.rho_KM)
            maps = [student[k] for k, _ in rows], [teacher[m] for _, m in rows]
            parts["stage_cka"] = losses.stage_cka(*maps, **phase.losses.stage_cka.params)
    for name in sorted(phase.losses.comparing(LOGITS)):
        assert student_BN is not None
        parts[name] = _logit_loss(models, name, phase.losses.named()[name], student_BN, guide_logits, batch)
    if student_BN is not None:
        parts |= _label_losses(phase.losses, student_BN, batch)
    if phase.losses.fixmatch:
        assert student_BN is not None
        strong_B3THW = _strong_view(models, batch, info)
        _, strong_BN = _run_student(models, strong_B3THW, info, 1, upto=None, taps=(), head=True)
        assert strong_BN is not None
        parts["fixmatch"] = losses.fixmatch(strong_BN, student_BN, **phase.losses.fixmatch.params)
    return {name: parts[name] for name in phase.losses.named()}


def _run_student(
    models: StepModels, view_B3THW: Tensor, info: StepInfo, view: int, **needed: Any
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run the student on the local clips, and gather the feature maps and logits of all ranks. `view` is 0 for the
    plain view and 1 for the strong one, so that dropout differs."""
    ranks = models.ranks
    with ranks.local_draws(models.device, models.options.seed, info.step, view):
        maps, logits = models.student.run(view_B3THW, **needed)
    return ranks.gather_maps(maps), None if logits is None else ranks.gather(logits)


def _strong_view(models: StepModels, batch: Batch, info: StepInfo) -> Tensor:
    """The strong view of this rank's clips, as the student's input."""
    local, size = models.ranks.local_slice(len(batch.labels_B)), len(batch.labels_B)
    clip_B3THW = strong_view(batch.clip_B3THW, models.options.seed, info.phase, info.step, local.start, size)
    return as_input(clip_B3THW, models.student.input)


def _run_guides(
    models: StepModels, plan: ForwardPlan, batch: Batch, info: StepInfo
) -> tuple[dict[str, Tensor], list[tuple[Tensor, float]]]:
    """Run the guides. Give the teacher's feature maps by block, and the logits of every guide that is kept in this
    step, each with its weight."""
    teacher_maps: dict[str, Tensor] = {}
    guide_logits: list[tuple[Tensor, float]] = []
    if not plan.needs_teacher:
        return teacher_maps, guide_logits
    options = models.options
    kept = kept_guides(options.drop, len(models.guides), options.seed, info.step)
    for i, guide in enumerate(models.guides):
        needs_logits = plan.needs_teacher_logits and i in kept
        taps = tuple(plan.teacher_taps.values()) if i == 0 else ()
        if not needs_logits and not taps:
            continue
        outputs = guide.outputs(batch, taps, needs_logits)
        if options.shuffle:
            outputs = outputs.shuffled()
        teacher_maps |= outputs.maps
        if outputs.logits is not None:
            guide_logits.append((outputs.logits, guide.weight))
    return teacher_maps, guide_logits


def one_to_one(pairs: Sequence[tuple[int, int]], rho_KM: Tensor | None) -> list[tuple[int, int]]:
    """Pair each student substage with one teacher substage: the one of the highest correlation, or the deepest one if
    correlation is not measured."""
    rows: list[tuple[int, int]] = []
    for k in sorted({k for k, _ in pairs}):
        teachers = [m for student, m in pairs if student == k]
        rows.append((k, max(teachers, key=lambda m: float(rho_KM[k, m]) if rho_KM is not None else m)))
    return rows


def _logit_loss(
    models: StepModels,
    name: str,
    loss: Loss,
    student_BN: Tensor,
    guide_logits: Sequence[tuple[Tensor, float]],
    batch: Batch,
) -> Tensor:
    """The mean of a loss over the guides, weighted by their weights."""
    function = _function(models, name, loss)
    labels = (batch.labels_B,) if loss.takes_labels else ()
    weighted = [weight * function(student_BN, teacher_BN, *labels) for teacher_BN, weight in guide_logits]
    return torch.stack(weighted).sum() / sum(weight for _, weight in guide_logits)


def _label_losses(named: Losses, student_BN: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The losses on labels. In a mixed batch, the loss on each of the two labels is weighted by its fraction."""

    def mixed(loss: Callable[[Tensor | slice], Tensor]) -> Tensor:
        first = loss(slice(None))
        return first if batch.order_B is None else batch.fraction * first + (1 - batch.fraction) * loss(batch.order_B)

    parts: dict[str, Tensor] = {}
    if named.ce is not None:
        smoothing, weights_N = named.ce.smoothing, batch.class_weights_N
        if weights_N is None:
            parts["ce"] = mixed(lambda rows: losses.ce(student_BN, batch.labels_B[rows], smoothing=smoothing))
        else:
            parts["ce"] = mixed(lambda rows: weighted_ce(student_BN, batch.labels_B[rows], weights_N, smoothing))
    if named.pseudo is not None:
        posterior_BN, accepted_B = batch.posterior_BN, batch.accepted_B
        assert posterior_BN is not None and accepted_B is not None
        parts["pseudo"] = mixed(lambda rows: losses.pseudo(student_BN, posterior_BN[rows], accepted_B[rows]))
    return parts


def weighted_ce(student_BN: Tensor, labels_B: Tensor, weights_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with weights of classes: sum of weight(label) * loss over the labelled clips, divided by the sum of
    weight(label). Zero, with zero gradient, if no clip is labelled; it is computed in at least float32."""
    known = labels_B >= 0
    if not bool(known.any()):
        return (student_BN * 0.0).sum()
    logits_BN, labels_B = student_BN[known], labels_B[known]
    with torch.autocast(student_BN.device.type, enabled=False):
        wide_BN = logits_BN if logits_BN.dtype == torch.float64 else logits_BN.float()
        each_B = F.cross_entropy(wide_BN, labels_B, reduction="none", label_smoothing=smoothing)
        weights_B = weights_N.to(wide_BN.dtype)[labels_B]
        return (weights_B * each_B).sum() / weights_B.sum()


def _feature_losses(
    models: StepModels, phase: PhaseWork, pairs: Sequence[FeaturePair], batch: Batch, info: StepInfo
) -> dict[str, Tensor]:
    """The losses on pairs of feature maps."""
    ramps = [ramp(j, info.epoch, phase.ramp) for j in range(len(pairs))]
    weights = [w * r for w, r in zip(pair_weights(pairs, models.options.pair_weights), ramps, strict=True)]
    parts: dict[str, Tensor] = {}
    for name in sorted(phase.losses.comparing(PAIRED)):
        loss = phase.losses.named()[name]
        function = _function(models, name, loss)
        weighted: list[Tensor] = []
        for pair, weight in zip(pairs, weights, strict=True):
            student = pair.projected if loss.compared == "projected" else pair.student
            assert student is not None
            weighted.append(weight * function(student, pair.teacher))
        parts[name] = torch.stack(weighted).mean()
    if phase.losses.crd:
        assert batch.rows_B is not None
        deepest = pairs[-1]
        parts["crd"] = models.adapters.contrast(phase)(deepest.student, deepest.teacher, batch.rows_B)
    return parts


def _function(models: StepModels, name: str, loss: Loss) -> Callable[..., Tensor]:
    """The function of a loss on logits or pairs, with its parameters: the user's own, or one of `losses`."""
    if name == "file":
        user_loss = cast(FileLoss, loss)
        return partial(models.user_losses[user_loss.path], **user_loss.args)
    return partial(losses.FUNCTIONS[name], **loss.params)
