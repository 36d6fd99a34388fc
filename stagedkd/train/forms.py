"""What a phase needs of the teacher's outputs: the grids of its pairs, and the forms of maps that its losses use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from stagedkd.losses.cells import resolve_samples
from stagedkd.models.network import EMBEDDING, POSITIONS
from stagedkd.models.shapes import NetworkShape
from stagedkd.plan.kind import Cut, PhaseWork
from stagedkd.spec.pairing import MIXED
from stagedkd.spec.schema import PAIRED, Loss
from stagedkd.spec.schema.losses.distribution import GaussianKl, GaussianW2
from stagedkd.spec.schema.losses.paired import PairedLoss
from stagedkd.train.maps import LOGITS, Form, Grid
from stagedkd.train.phases import ForwardPlan


@dataclass(frozen=True)
class PairGrid:
    """The grid (T, H, W) on which a pair, or the mixture for a teacher substage `m`, is compared; `name` says which."""

    name: str
    m: int
    grid: Grid


def pair_grids(
    phase: PhaseWork, pairing: str, cuts: tuple[Cut, Cut], student: NetworkShape, teacher: NetworkShape
) -> list[PairGrid]:
    """The grids on which a phase compares features, in the order of the pairs that the adapters make. All pairs of one
    mixture, those of a teacher substage, have one grid. `cuts` are those of student and teacher."""
    mixed = pairing in MIXED
    rows: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for k, m in sorted(phase.pairs, key=lambda pair: pair[1] if mixed else 0):
        name = f"mixture {m + 1}" if mixed else f"pair {k + 1}-{m + 1}"
        maps = student.maps[cuts[0][k][-1]], teacher.maps[cuts[1][m][-1]]
        rows.setdefault((name, m), []).extend(shape[1:] for shape in maps)
    return [PairGrid(name, m, cast(Grid, tuple(map(min, *shapes)))) for (name, m), shapes in rows.items()]


def forms_needed(
    phase: PhaseWork, plan: ForwardPlan, teacher: NetworkShape, teacher_cut: Cut, grids: Sequence[PairGrid]
) -> tuple[Form, ...]:
    """The forms of the teacher's outputs that the losses of a phase need, each once.

    A pair that only Gaussians of clips or frames are compared of needs these; every other pair needs its map on the
    common grid. `graft` also runs the teacher and is not covered.
    """
    forms: list[Form] = [Form(LOGITS)] if plan.needs_teacher_logits else []
    forms += [Form(EMBEDDING)] if plan.embedding else []
    forms += [Form(POSITIONS)] if plan.positions else []
    named = phase.losses.named()
    paired = [named[name] for name in sorted(phase.losses.comparing(PAIRED))]
    for pair in grids:
        last = pair is grids[-1]
        used = [loss for loss in paired if last or not (isinstance(loss, PairedLoss) and loss.taps == "deepest")]
        used += [loss for loss in (phase.losses.crd,) if loss and last and loss.compared == "deepest"]
        forms += _forms_of_pair(teacher_cut[pair.m][-1], pair.grid, used)
    if phase.losses.stage_cka:
        forms += [Form(block, cast(Grid, teacher.maps[block][1:])) for block in plan.teacher_taps.values()]
    return tuple(dict.fromkeys(forms))


def _forms_of_pair(block: str, grid: Grid, used: Sequence[Loss]) -> list[Form]:
    gaussian = [loss for loss in used if isinstance(loss, GaussianW2 | GaussianKl) and _of_clips(loss, grid)]
    if len(gaussian) < len(used):
        return [Form(block, grid)]
    return [Form(block, grid, loss.samples, loss.cells) for loss in gaussian]


def _of_clips(loss: GaussianW2 | GaussianKl, grid: Grid) -> bool:
    """Whether all that a loss uses of the teacher's map is a Gaussian of each clip, frame or cell of these."""
    scaled = isinstance(loss, GaussianW2) and loss.scale is not None
    return not scaled and resolve_samples(grid, loss.samples, loss.cells) != "batch"
