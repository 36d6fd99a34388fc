"""The terms of a phase's loss: both networks run as far as needed, then each loss by its name.

Shape legend: B clips, 3 = RGB, C channels, T frames, H, W pixels, N classes; K student and M teacher substages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagedkd import losses
from stagedkd.data.draws import Stream, uniform
from stagedkd.data.mix import Batch, strong_view
from stagedkd.data.views import fit_input
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import LOGIT_LOSSES, PAIRED_LOSSES, PROJECTED_LOSSES, Input, Loss, Losses
from stagedkd.train.bridge import Bridge, Compared, pair_shares
from stagedkd.train.phases import Route
from stagedkd.train.ranks import Ranks
from stagedkd.train.schedule import ramp

Forward = Callable[..., tuple[dict[str, Tensor], Tensor | None]]
OwnLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class Seen:
    """A network as a step uses it: its `run`, compiled or not, what it makes of the shared view, and its weight among
    several guides."""

    run: Forward
    input: Input | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Hop:
    """What holds for all phases of a hop; see `Distill` of plan/work.py. `seed` draws the guides that are dropped and
    the strong views."""

    drop: float = 0.0
    shuffle: bool = False
    pair_weights: str = "uniform"
    seed: int = 0


@dataclass(frozen=True)
class Cast:
    """Who takes part in a step. `guides`: the teacher, then the others whose logits count; `own`: losses of one's own,
    by their file; `ranks`: the processes that share the batch."""

    student: Seen
    guides: tuple[Seen, ...]
    bridge: Bridge
    device: torch.device
    hop: Hop = field(default_factory=Hop)
    own: Mapping[str, OwnLoss] = field(default_factory=dict[str, OwnLoss])
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Moment:
    """When a step is: the phase's number, the epoch of it (with fractions), the step of all; and the measured
    correlation of substages, where a phase wants it."""

    phase: int = 0
    epoch: float = 0.0
    step: int = 0
    rho_KM: Tensor | None = None


def loss_parts(cast: Cast, phase: PhaseWork, route: Route, batch: Batch, moment: Moment) -> dict[str, Tensor]:
    """The unweighted losses of a phase by name, in the order of the schema. Losses on pairs are means over the pairs,
    weighted by the hop's `pair_weights` and the phase's `ramp`. Of several ranks each has the losses of the whole
    batch: networks run on its share of the clips, what they make is gathered."""
    mine_B3THW = _shown(cast, batch.clip_B3THW, cast.student.input)
    taps = tuple(route.student_taps.values())
    feats, logits = _student(cast, mine_B3THW, moment, 0, upto=route.student_end, taps=taps, head=phase.head)
    theirs, heard = _teachers(cast, route, batch, mine_B3THW, moment)
    parts: dict[str, Tensor] = {}
    if phase.pairs:
        student = {k: feats[name] for k, name in route.student_taps.items()}
        teacher = {m: theirs[name] for m, name in route.teacher_taps.items()}
        compared = cast.bridge.compare(phase, student, teacher, moment.rho_KM)
        parts |= _feature_parts(cast, phase, compared, batch, moment)
        if phase.losses.stage_cka:
            rows = one_to_one(phase.pairs, moment.rho_KM)
            maps = [student[k] for k, _ in rows], [teacher[m] for _, m in rows]
            parts["stage_cka"] = losses.stage_cka(*maps, **phase.losses.stage_cka.params)
    for name in sorted(phase.losses.on(LOGIT_LOSSES)):
        assert logits is not None
        parts[name] = _logit_part(cast, name, phase.losses.named()[name], logits, heard, batch)
    if logits is not None:
        parts |= _label_parts(phase.losses, logits, batch)
    if phase.losses.fixmatch:
        assert logits is not None
        strong_B3THW = _strong(cast, batch, moment)
        _, strong_BN = _student(cast, strong_B3THW, moment, 1, upto=None, taps=(), head=True)
        assert strong_BN is not None
        parts["fixmatch"] = losses.fixmatch(strong_BN, logits, **phase.losses.fixmatch.params)
    return {name: parts[name] for name in phase.losses.named()}


def _student(
    cast: Cast, clip_B3THW: Tensor, moment: Moment, view: int, **asked: Any
) -> tuple[dict[str, Tensor], Tensor | None]:
    """What the student makes of all ranks' clips. `view` 0 is the plain one, 1 the strong one: dropout draws anew."""
    with cast.ranks.own_draws(cast.device, cast.hop.seed, moment.step, view):
        feats, logits = cast.student.run(clip_B3THW, **asked)
    return cast.ranks.gather_maps(feats), None if logits is None else cast.ranks.gather(logits)


def _strong(cast: Cast, batch: Batch, moment: Moment) -> Tensor:
    """The strong view of this rank's clips, as the student sees it."""
    clip_B3THW, own = batch.clip_B3THW, cast.ranks.own(len(batch.labels_B))
    made = strong_view(clip_B3THW, cast.hop.seed, moment.phase, moment.step, own.start, len(batch.labels_B))
    return _shown(cast, made, cast.student.input)


def _shown(cast: Cast, clip_B3THW: Tensor, by: Input | None) -> Tensor:
    """The shared view as a network sees it."""
    made = fit_input(clip_B3THW, by)
    return made.contiguous(memory_format=torch.channels_last_3d) if cast.device.type == "cuda" else made


def _teachers(
    cast: Cast, route: Route, batch: Batch, mine_B3THW: Tensor, moment: Moment
) -> tuple[dict[str, Tensor], list[tuple[Tensor, float]]]:
    """The teacher's feature maps by block, and the logits of every guide that is kept in this step with its weight."""
    theirs: dict[str, Tensor] = {}
    heard: list[tuple[Tensor, float]] = []
    if not route.needs_teacher:
        return theirs, heard
    kept = kept_guides(cast.hop.drop, len(cast.guides), cast.hop.seed, moment.step)
    for i, guide in enumerate(cast.guides):
        wanted = route.needs_teacher_logits and i in kept
        taps = tuple(route.teacher_taps.values()) if i == 0 else ()
        if not wanted and not taps:
            continue
        same = cast.student.input == guide.input
        view_B3THW = mine_B3THW if same else _shown(cast, batch.clip_B3THW, guide.input)
        with torch.no_grad():
            shares, logits = guide.run(view_B3THW, upto=None, taps=taps, head=wanted)
        found = cast.ranks.gather_maps(shares)
        logits = cast.ranks.gather(logits) if logits is not None else None
        if cast.hop.shuffle:  # each clip is shown what belongs to the next one of the batch
            found = {name: feat.roll(1, 0) for name, feat in found.items()}
            logits = logits.roll(1, 0) if logits is not None else None
        theirs |= found
        if logits is not None:
            heard.append((logits, guide.share))
    return theirs, heard


def kept_guides(drop: float, count: int, seed: int, step: int) -> frozenset[int]:
    """Which of `count` guides speak in a step: each is left out with chance `drop`, one always stays (DGKD, Son et al.
    2021)."""
    if not drop:
        return frozenset(range(count))
    draws = uniform(seed, Stream.GUIDES_DROPPED, step, np.arange(count + 1))
    kept = frozenset(i for i in range(count) if draws[i] >= drop)
    return kept or frozenset({int(draws[count] * count)})


def one_to_one(pairs: Sequence[tuple[int, int]], rho_KM: Tensor | None) -> list[tuple[int, int]]:
    """Each student substage once, with the teacher substage of the highest correlation, or the deepest one where none
    is measured."""
    found: list[tuple[int, int]] = []
    for k in sorted({k for k, _ in pairs}):
        others = [m for own, m in pairs if own == k]
        found.append((k, max(others, key=lambda m: float(rho_KM[k, m]) if rho_KM is not None else m)))
    return found


def _logit_part(
    cast: Cast, name: str, loss: Loss, logits_BN: Tensor, heard: Sequence[tuple[Tensor, float]], batch: Batch
) -> Tensor:
    """The mean of a loss over the guides, weighted by their shares."""
    if name == "file":
        each = [share * _own(cast, loss)(logits_BN, theirs) for theirs, share in heard]
    else:
        labels = (batch.labels_B,) if name == "dkd" else ()
        function = getattr(losses, name)
        each = [share * function(logits_BN, theirs, *labels, **loss.params) for theirs, share in heard]
    return torch.stack(each).sum() / sum(share for _, share in heard)


def _label_parts(named: Losses, logits_BN: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Losses on labels; of a mixed batch, each label counts by its share."""

    def mixed(of: Callable[[Tensor | slice], Tensor]) -> Tensor:
        first = of(slice(None))
        return first if batch.order_B is None else batch.share * first + (1 - batch.share) * of(batch.order_B)

    parts: dict[str, Tensor] = {}
    if named.ce is not None:
        params = named.ce.params
        parts["ce"] = mixed(lambda at: losses.ce(logits_BN, batch.labels_B[at], **params))
    if named.pseudo is not None:
        posterior_BN, accepted_B = batch.posterior_BN, batch.accepted_B
        assert posterior_BN is not None and accepted_B is not None
        parts["pseudo"] = mixed(lambda at: losses.pseudo(logits_BN, posterior_BN[at], accepted_B[at]))
    return parts


def _feature_parts(
    cast: Cast, phase: PhaseWork, compared: Sequence[Compared], batch: Batch, moment: Moment
) -> dict[str, Tensor]:
    """Losses on pairs."""
    ramps = [ramp(j, moment.epoch, phase.ramp) for j in range(len(compared))]
    shares = [s * r for s, r in zip(pair_shares(compared, cast.hop.pair_weights), ramps, strict=True)]
    parts: dict[str, Tensor] = {}
    for name in sorted(phase.losses.on(PAIRED_LOSSES)):
        loss = phase.losses.named()[name]
        each: list[Tensor] = []
        for pair, share in zip(compared, shares, strict=True):
            mine = pair.lifted if name in PROJECTED_LOSSES else pair.student
            assert mine is not None
            each.append(share * _paired(cast, name, loss)(mine, pair.teacher))
        parts[name] = torch.stack(each).mean()
    if phase.losses.crd:
        assert batch.rows_B is not None
        deepest = compared[-1]
        parts["crd"] = cast.bridge.contrast(phase)(deepest.student, deepest.teacher, batch.rows_B)
    return parts


def _paired(cast: Cast, name: str, loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "file":
        return _own(cast, loss)
    if name == "cka":
        return lambda mine, theirs: 1 - losses.cka(mine.flatten(1), theirs.detach().flatten(1), **loss.params)
    return lambda mine, theirs: getattr(losses, name)(mine, theirs, **loss.params)


def _own(cast: Cast, loss: Loss) -> OwnLoss:
    path, args = getattr(loss, "path"), getattr(loss, "args")  # noqa: B009
    function = cast.own[path]
    return lambda mine, theirs: function(mine, theirs, **args)
