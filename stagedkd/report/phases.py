"""Lines that `plan -v` prints: what each phase of a training trains, freezes, runs and compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from stagedkd.plan.graph import Plans, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.kind import Cut, PhaseWork
from stagedkd.plan.work import DistillWork, RefineWork
from stagedkd.spec.describe import written
from stagedkd.spec.pairing import graft_pairs
from stagedkd.spec.schema import EMBEDDED, FEATURES, GRAFT, Loss
from stagedkd.train.schedule import phase_rates

if TYPE_CHECKING:
    from stagedkd.stages.keeping import Keeping


def phase_lines(plans: Plans, keepings: Mapping[Key, Keeping] | None = None) -> Iterator[str]:
    """Yield the phases of every unique stage that trains. `keepings` says what each hop keeps, by identity."""
    for stage in plans.unique.values():
        work = stage.work
        if isinstance(work, DistillWork):
            yield from _distill(stage, work, (keepings or {}).get(stage.identity))
        elif isinstance(work, RefineWork):
            names = " and ".join(network.by for network in work.networks)
            yield from ("", f"{stage.name}: {names} trained {work.rule.folds} times, each time without one fold")
            for network in work.networks:
                yield f"  {network.by}: {_span((network.phase,), 0)}, {_losses(network.phase)}"
        else:
            for number, phase in enumerate(work.trainings):
                yield from ("", f"{stage.name}: {_span(work.trainings, number)}, {_losses(phase)}")


def _distill(stage: Stage, work: DistillWork, keeping: Keeping | None) -> Iterator[str]:
    guides = ", ".join(stage.needs[name] for name in work.guide_inputs)
    yield from ("", f"{stage.name} from {stage.needs['teacher']}" + (f", also guided by {guides}" if guides else ""))
    options = {
        "pairing": work.pairing if work.pairing != "pairs" else "",
        "pair weights": work.pair_weights,
        "normalize": work.normalize,
        "drop": work.drop and f"{work.drop:g}",
        "warm start": work.warm_start and "yes",
        "teacher's outputs": work.shuffle and "shuffled",
    }
    line = ", ".join(f"{name}: {value}" for name, value in options.items() if value and value != "uniform")
    if line:
        yield f"  {line}"
    if keeping is not None and keeping.line:
        yield f"  {keeping.line}"
    for number, phase in enumerate(work.phases):
        yield f"  {_span(work.phases, number)}"
        parts = [_substages(work.cut, phase.trained)] if phase.trained else []
        yield f"    trains {' and '.join([*parts, *(['the head'] if phase.head else [])])}"
        if phase.quantised:
            yield f"    rounds weights and activations as {phase.quantised} does, with ranges from training clips"
        if phase.frozen:
            yield f"    runs frozen {_substages(work.cut, phase.frozen)}"
        yield f"    {_guide(work, phase)}"
        if phase.losses.comparing(FEATURES - GRAFT):
            rows = ", ".join(f"{k + 1}-{m + 1}" for k, m in phase.pairs)
            ramp = f", one after the other, each over {phase.ramp:g} epochs" if phase.ramp else ""
            ends = ", ".join(work.teacher_cut[m][-1] for m in sorted({m for _, m in phase.pairs}))
            yield f"    compares substages {rows}{ramp}, with the guide's maps after {ends}"
        if phase.losses.comparing(EMBEDDED):
            yield "    compares the pooled features in front of the heads"
        if graft := phase.losses.graft:
            grafts = graft_pairs(phase.pairs, len(work.cut), len(work.teacher_cut))
            rows = ", ".join(f"{k + 1} into {m + 1}" for k, m in grafts)
            yield f"    grafts substages {rows}, {graft.draw} in each step"
        if keeping is not None:
            yield from (f"    {line}" for line in keeping.phase_lines(number))
        yield f"    {_losses(phase)}"


def _span(phases: Sequence[PhaseWork], number: int) -> str:
    """The epochs, the optimizer and the learning rate of a phase of a training."""
    phase = phases[number]
    train = phase.train
    stop = f" of {phase.epochs}" if phase.stop else ""
    epochs = "epoch" if phase.run_epochs == 1 and not stop else "epochs"
    schedule = f"{train.shape} over the hop" if train.over_hop else train.shape
    start, peak, end = phase_rates(phases, number)
    rates = f"(starts at {start:.3g}, peaks at {peak:.3g}, ends at {end:.3g})"
    return f"{phase.name}: {phase.run_epochs}{stop} {epochs}, {train.optimizer} lr {train.lr:g} {schedule} {rates}"


def _substages(cut: Cut, numbers: tuple[int, ...]) -> str:
    return ", ".join("+".join(cut[k]) for k in numbers)


def _guide(work: DistillWork, phase: PhaseWork) -> str:
    if phase.losses.needs_guide_logits or phase.losses.comparing(GRAFT):
        return "runs the whole guide"
    if phase.losses.comparing(EMBEDDED):
        return "runs the whole guide but its head"
    if not phase.pairs:
        return "does not run the guide"
    return f"runs the guide up to {work.teacher_cut[max(m for _, m in phase.pairs)][-1]}"


def _losses(phase: PhaseWork) -> str:
    return "losses " + ", ".join(f"{name} {_loss(loss)}" for name, loss in phase.losses.named().items())


def _loss(loss: Loss) -> str:
    hidden = {"weight": True, "digest": True, "weigh": {"digest": True}}
    values = loss.model_dump(exclude_none=True, exclude_defaults=True, exclude=hidden)
    return f"{loss.weight:g}" + (f" {written(values)}" if values else "")
