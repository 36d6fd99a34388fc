"""Losses: each is a pure function under its usual name, computed in at least float32 with autocast off. Only CRD and
ELR, which are modules, have a memory.

`FUNCTIONS` maps the names of the losses in a spec that compare logits or pairs of feature maps to their functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature

from torch import Tensor

from stagedkd.losses.contrastive import CRD
from stagedkd.losses.distribution import Gaussians, coral, gaussian_kl, gaussian_w2, gaussians, mmd, nst, sliced_w2
from stagedkd.losses.feature import at, hint, pool_to, pool_to_common, review
from stagedkd.losses.multilevel import mlld, ofa, sdd, wttm
from stagedkd.losses.relation import cka, cka_distance, pkt, rkd, sp, stage_cka
from stagedkd.losses.response import ce, dist, dkd, fixmatch, kd, logit_std, mean_teacher, pseudo, standardise
from stagedkd.losses.robust import ELR, gce, sce
from stagedkd.spec.schema import PAIRED, FileLoss, Loss, Losses
from stagedkd.spec.schema.losses.base import LOGITS, OF_THE_STEP
from stagedkd.spec.schema.losses.clipwise import ClipLoss
from stagedkd.spec.schema.losses.paired import PairedLoss
from stagedkd.spec.schema.losses.whole import loss_sections

__all__ = [
    "CRD",
    "ELR",
    "Gaussians",
    "at",
    "ce",
    "cka",
    "cka_distance",
    "coral",
    "dist",
    "dkd",
    "fixmatch",
    "gaussian_kl",
    "gaussian_w2",
    "gaussians",
    "gce",
    "hint",
    "kd",
    "logit_std",
    "mean_teacher",
    "mlld",
    "mmd",
    "nst",
    "ofa",
    "pkt",
    "pool_to",
    "pool_to_common",
    "pseudo",
    "review",
    "rkd",
    "sce",
    "sdd",
    "sliced_w2",
    "sp",
    "stage_cka",
    "standardise",
    "wttm",
]

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    # (student_BN, teacher_BN[, labels_B], **parameters) -> scalar; sdd: of the logits of all positions
    "kd": kd,
    "dkd": dkd,
    "dist": dist,
    "logit_std": logit_std,
    "wttm": wttm,
    "mlld": mlld,
    "sdd": sdd,
    "ofa": ofa,
    # (student_BCTHW, teacher_BCTHW, **parameters) -> scalar
    "hint": hint,
    "at": at,
    "review": review,
    "gaussian_w2": gaussian_w2,
    "gaussian_kl": gaussian_kl,
    "mmd": mmd,
    "nst": nst,
    "coral": coral,
    "sliced_w2": sliced_w2,
    "sp": sp,
    "rkd": rkd,
    "pkt": pkt,
    "cka": cka_distance,
}
# modules of train/ compute these, each in its way
BY_NAME = frozenset({"ce", "gce", "sce", "elr", "pseudo", "fixmatch", "mean_teacher", "stage_cka", "crd", "graft"})


def _require_functions() -> None:
    """Raise ImportError if a loss of the spec has no function, or a function has no loss of the spec."""
    sections = {name: kind for name, kind in loss_sections().items() if kind is not FileLoss}
    for name in sorted(sections.keys() ^ (FUNCTIONS.keys() | BY_NAME)):
        if name not in sections:
            raise ImportError(f"the loss '{name}' is not a field of {Losses.__name__}")
        general = sections[name].compares in LOGITS | PAIRED
        place = "FUNCTIONS" if general else "BY_NAME, and compute it in train/terms.py"
        raise ImportError(f"the loss '{name}' has no function: add it to {place}")
    for name, function in FUNCTIONS.items():
        fields = sections[name].model_fields.keys() - {*Loss.model_fields, *PairedLoss.model_fields} - OF_THE_STEP
        fields |= {"weights_B"} if issubclass(sections[name], ClipLoss) else set()
        if unknown := sorted(fields - signature(function).parameters.keys()):
            raise ImportError(f"the loss '{name}' has fields that its function does not take: {', '.join(unknown)}")


_require_functions()
