"""The losses that a phase may name, with their parameters. A bare number is the weight."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from pydantic import model_validator

from stagedkd.spec.schema.base import Section
from stagedkd.spec.schema.losses.base import LOGITS, Compares, Loss
from stagedkd.spec.schema.losses.distribution import Coral, GaussianKl, GaussianW2, Mmd, Nst, SlicedW2
from stagedkd.spec.schema.losses.feature import At, Graft, Hint, Review
from stagedkd.spec.schema.losses.labels import Ce, Elr, Fixmatch, Gce, MeanTeacher, Pseudo, Sce
from stagedkd.spec.schema.losses.own import FileLoss
from stagedkd.spec.schema.losses.relation import Cka, Crd, Pkt, Rkd, Sp, StageCka
from stagedkd.spec.schema.losses.response import Dist, Dkd, Kd, LogitStd, Mlld, Ofa, Sdd, Wttm


class Losses(Section):
    """The losses of a phase, by name. A value is a weight, or {weight: ..., parameters}."""

    ce: Ce | None = None
    """Cross-entropy on labels, for labelled clips only."""
    gce: Gce | None = None
    """Generalised cross-entropy on labels that may be wrong, for labelled clips only."""
    sce: Sce | None = None
    """Symmetric cross-entropy on labels that may be wrong, for labelled clips only."""
    elr: Elr | None = None
    """Cross-entropy on labels that may be wrong, held near what was learnt early; for labelled clips only."""
    pseudo: Pseudo | None = None
    """Cross-entropy on refined labels; needs `refine`."""
    fixmatch: Fixmatch | None = None
    """Agreement between two views of each clip, for all clips; needs no teacher."""
    mean_teacher: MeanTeacher | None = None
    """Agreement of the student with the average of its own weights, for all clips; needs no teacher."""
    kd: Kd | None = None
    """Knowledge distillation on logits, for all clips, labelled or not."""
    dkd: Dkd | None = None
    """Decoupled knowledge distillation, for all clips."""
    dist: Dist | None = None
    """Correlation of probabilities, for all clips."""
    logit_std: LogitStd | None = None
    """Knowledge distillation on standardised logits, for all clips."""
    wttm: Wttm | None = None
    """Transformed teacher matching on logits, for all clips."""
    mlld: Mlld | None = None
    """Knowledge distillation on the logits of clips, of pairs of clips and of pairs of classes, for all clips."""
    sdd: Sdd | None = None
    """Knowledge distillation on the logits of regions, for all clips."""
    ofa: Ofa | None = None
    """Knowledge distillation with exits behind substages, for all clips."""
    hint: Hint | None = None
    """Mean squared error between paired features, through a projector."""
    at: At | None = None
    """Difference between the attention maps of paired features."""
    review: Review | None = None
    """Mean squared error between paired features on several grids, through a projector."""
    gaussian_w2: GaussianW2 | None = None
    """Distance between the distributions of paired features, through a projector."""
    gaussian_kl: GaussianKl | None = None
    """Divergence between the distributions of paired features, through a projector."""
    mmd: Mmd | None = None
    """Discrepancy between the distributions of paired features, through a projector."""
    nst: Nst | None = None
    """Discrepancy between the channel maps of paired features."""
    coral: Coral | None = None
    """Difference between the covariances of paired features, through a projector."""
    sliced_w2: SlicedW2 | None = None
    """Distance between the projected distributions of paired features, through a projector."""
    sp: Sp | None = None
    """Difference between the similarities within the batch, for paired features."""
    rkd: Rkd | None = None
    """Difference between the distances and angles within the batch, for paired features."""
    pkt: Pkt | None = None
    """Difference between the neighbourhoods within the batch, for paired features."""
    cka: Cka | None = None
    """Alignment within the batch, for paired features."""
    stage_cka: StageCka | None = None
    """Alignment between the substages of each network; needs two pairs or more."""
    crd: Crd | None = None
    """Contrast of each clip with other clips, for the deepest pair."""
    graft: Graft | None = None
    """Knowledge distillation through the teacher's later blocks, which continue from the student's features."""
    file: FileLoss | None = None
    """A loss of your own, from a Python file."""

    @model_validator(mode="after")
    def _some(self) -> Losses:
        if not self.named():
            raise ValueError("a phase without a loss trains nothing")
        return self

    def named(self) -> dict[str, Loss]:
        """Return the losses that are set, by name."""
        losses = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def comparing(self, kinds: Collection[Compares]) -> frozenset[str]:
        """Return the names of the losses that are set and compare one of `kinds`."""
        return frozenset(name for name, loss in self.named().items() if loss.compared in kinds)

    @property
    def given_labels(self) -> frozenset[str]:
        """The names of the losses that are set and use the given labels alone, so that clips without one are left
        out."""
        return frozenset(name for name, loss in self.named().items() if loss.given_labels)

    @property
    def needs_guide_logits(self) -> bool:
        """Whether a loss compares logits with the guides', or clips are weighed by them."""
        return bool(self.comparing(LOGITS)) or any(isinstance(loss.weighing, str) for loss in self.named().values())


def loss_sections() -> dict[str, type[Loss]]:
    """Return the section of every loss, by its name in a spec."""
    sections: dict[str, type[Loss]] = {}
    for name, field in Losses.model_fields.items():
        sections[name] = next(arm for arm in get_args(field.annotation) if arm is not type(None))
    return sections
