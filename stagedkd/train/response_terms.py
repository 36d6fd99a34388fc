"""The losses of a step on logits: with the logits of the guides, or with labels.

Shape legend: B clips, N classes, T, H, W positions of the last feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.mix import Batch
from stagedkd.models.network import POSITIONS
from stagedkd.spec.schema import Loss, Losses
from stagedkd.train.clip_weights import GuideLogits, clip_weights
from stagedkd.train.step import StepModels, loss_function


@dataclass(frozen=True)
class Responses:
    """The student's logits for the plain view (B, N); where losses need them, for the strong view, and those of the
    average of its weights for the plain view; its feature maps, by block; and the guides' logits."""

    plain_BN: Tensor
    guides: Sequence[GuideLogits] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    exits: Sequence[Tensor] = ()
    strong_BN: Tensor | None = None
    average_BN: Tensor | None = None


def logit_loss(models: StepModels, name: str, loss: Loss, responses: Responses, batch: Batch) -> Tensor:
    """The mean of a loss over the guides, weighted by their weights."""
    function = loss_function(models, name, loss)
    weights_B = clip_weights(loss, batch, responses.guides, models.clip_weights)
    function = function if weights_B is None else partial(function, weights_B=weights_B)
    ready = losses.standardise if loss.standardised and name != "sdd" else _as_it_is
    labels = (batch.labels_B,) if loss.takes_labels else ()
    exits = ([ready(logits_BN) for logits_BN in responses.exits],) if name == "ofa" else ()
    student = responses.plain_BN
    if name == "sdd":  # the logits of positions; each region is standardised for itself
        student, function = responses.maps[POSITIONS], partial(function, standardised=loss.standardised)
    student, weighted = ready(student), list[Tensor]()
    for guide in responses.guides:
        teacher = guide.positions if name == "sdd" else guide.logits
        assert teacher is not None
        weighted.append(guide.weight * function(student, ready(teacher), *labels, *exits))
    return torch.stack(weighted).sum() / sum(guide.weight for guide in responses.guides)


def _as_it_is(logits_BN: Tensor) -> Tensor:
    return logits_BN


def label_losses(models: StepModels, named: Losses, responses: Responses, batch: Batch) -> dict[str, Tensor]:
    """The losses on labels. In a mixed batch, the loss on each of the two labels is weighted by its fraction."""
    labels_B, plain_BN = batch.labels_B, responses.plain_BN

    def weights(loss: Loss, rows: Tensor | slice, given: bool) -> Tensor | None:
        labels = labels_B[rows] if given else None
        weights_B = clip_weights(loss, batch, responses.guides, models.clip_weights, labels, rows)
        if loss is not named.ce or batch.class_weights_N is None:
            return weights_B
        of_classes_B = batch.class_weights_N[labels_B[rows].clamp_min(0)]  # clips without a label do not count
        return of_classes_B if weights_B is None else weights_B * of_classes_B

    def mixed(value: Callable[[Tensor | slice], Tensor]) -> Tensor:
        first = value(slice(None))
        return first if batch.order_B is None else batch.fraction * first + (1 - batch.fraction) * value(batch.order_B)

    parts: dict[str, Tensor] = {}
    for name, function in (("ce", losses.ce), ("gce", losses.gce), ("sce", losses.sce)):
        if (loss := named.named().get(name)) is not None:
            params = loss.params
            parts[name] = mixed(
                lambda rows, f=function, loss=loss, params=params: f(
                    plain_BN, labels_B[rows], **params, weights_B=weights(loss, rows, given=True)
                )
            )
    if named.elr is not None:
        assert batch.rows_B is not None and batch.order_B is None, "check refuses mixed clips"
        memory, weights_B = models.adapters.responses.memories["elr"], weights(named.elr, slice(None), given=True)
        parts["elr"] = memory(plain_BN, labels_B, batch.rows_B, **named.elr.params, weights_B=weights_B)
    if (loss := named.pseudo) is not None:
        posterior_BN, accepted_B = batch.posterior_BN, batch.accepted_B
        assert posterior_BN is not None and accepted_B is not None
        parts["pseudo"] = mixed(
            lambda rows: losses.pseudo(
                plain_BN, posterior_BN[rows], accepted_B[rows], weights_B=weights(loss, rows, given=False)
            )
        )
    return parts | _view_losses(models, named, responses, batch)


def _view_losses(models: StepModels, named: Losses, responses: Responses, batch: Batch) -> dict[str, Tensor]:
    """The losses between two views of each clip."""
    parts: dict[str, Tensor] = {}
    if (loss := named.fixmatch) is not None:
        assert responses.strong_BN is not None
        weights_B = clip_weights(loss, batch, responses.guides, models.clip_weights)
        parts["fixmatch"] = losses.fixmatch(responses.strong_BN, responses.plain_BN, **loss.params, weights_B=weights_B)
    if (loss := named.mean_teacher) is not None:
        assert responses.strong_BN is not None and responses.average_BN is not None
        weights_B = clip_weights(loss, batch, responses.guides, models.clip_weights)
        parts["mean_teacher"] = losses.mean_teacher(responses.strong_BN, responses.average_BN, weights_B=weights_B)
    return parts
