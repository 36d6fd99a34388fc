"""Compile the phases of a training: how long each runs, and what it trains, freezes and compares."""

from __future__ import annotations

from collections.abc import Sequence

from stagedkd.plan.kind import Cut, PhaseWork
from stagedkd.spec.cuts import student_cut
from stagedkd.spec.labelled import relevant
from stagedkd.spec.pairing import Matching
from stagedkd.spec.quantise import PHASE, quantise_epochs, quantise_train
from stagedkd.spec.schedule import phase_epochs
from stagedkd.spec.schema import (
    FEATURES,
    RESPONSES,
    Ce,
    Losses,
    Phase,
    Pseudo,
    Quantise,
    Spec,
    Student,
    Teacher,
    TeacherFields,
    Train,
    TrainPatch,
)


def ce_phase(
    spec: Spec,
    network: Teacher | Student,
    epochs: int,
    stop: int | None = None,
    train: TrainPatch | None = None,
    *,
    soft: bool = False,
) -> PhaseWork:
    """A phase that trains a whole network by cross-entropy, or its head alone; with `soft` on soft labels. It ends
    early after `stop` epochs. `train` overrides how the network is trained."""
    losses = Losses(pseudo=Pseudo()) if soft else Losses(ce=Ce())
    probe = isinstance(network, TeacherFields) and network.trains == "head"
    return PhaseWork(
        name="train",
        epochs=epochs,
        stop=None if stop == epochs else stop,
        trained=() if probe else (0,),
        frozen=(0,) if probe else (),
        pairs=(),
        head=True,
        losses=losses,
        train=relevant(spec.train.patched(network.train, train or TrainPatch()).over_phase(), Losses(ce=Ce())),
    )


def hop_phases(spec: Spec, network: Student, matched: Matching | None) -> tuple[PhaseWork, ...]:
    """The phases of a hop's student. A phase with `substages: one_by_one` becomes one phase for each substage."""
    train = spec.train.patched(network.train)
    cut = student_cut(network)
    declared = spec.distill.phases
    epochs = phase_epochs(declared, network.epochs or spec.student.epochs, len(cut))
    phases: list[PhaseWork] = []
    for name, phase in declared.items():
        patched, (count, *_) = train.patched(phase.train), epochs[name]
        if phase.substages == "one_by_one":
            for k, count in enumerate(epochs[name][: len(cut)]):
                phases.append(_phase_work(f"{name}.{k + 1}", count, phase, (k,), patched, cut, matched))
        else:
            numbers = sorted(k - 1 for k in phase.substages) if isinstance(phase.substages, tuple) else range(len(cut))
            numbers = () if phase.substages == "head" else numbers
            phases.append(_phase_work(name, count, phase, tuple(numbers), patched, cut, matched))
    scheduled = _with_hop_schedule(phases, train)
    return scheduled if network.quantise is None else (*scheduled, _int8_phase(network.quantise, scheduled))


def _int8_phase(quantise: Quantise, phases: Sequence[PhaseWork]) -> PhaseWork:
    """The phase in which a student is fine-tuned for int8: it goes on with the losses of the last one."""
    last, epochs = phases[-1], quantise_epochs(quantise, sum(phase.epochs for phase in phases))
    train = relevant(quantise_train(quantise, last.train), last.losses)
    update = {"name": PHASE, "epochs": epochs, "ramp": None, "train": train, "quantised": quantise.to}
    return last.model_copy(update=update)


def _with_hop_schedule(phases: Sequence[PhaseWork], train: Train) -> tuple[PhaseWork, ...]:
    """The phases of a hop. Under a schedule over the hop, each phase has the warm-up of the hop, which is that of the
    network (`train`). A hop of one phase has a schedule over the phase, which is the same."""
    if not train.over_hop:
        return tuple(phases)
    update = {"schedule": train.shape if len(phases) == 1 else train.schedule, "warmup_epochs": train.warmup_epochs}
    return tuple(phase.model_copy(update={"train": phase.train.model_copy(update=update)}) for phase in phases)


def _phase_work(
    name: str, epochs: int, phase: Phase, trained: tuple[int, ...], train: Train, cut: Cut, matched: Matching | None
) -> PhaseWork:
    """A phase, with the substages that it trains, runs frozen and compares. The head is run if a loss needs logits."""
    head = bool(phase.losses.comparing(RESPONSES))
    last = len(cut) - 1 if head else max(trained)
    compares = matched is not None and bool(phase.losses.comparing(FEATURES))
    return PhaseWork(
        name=name,
        epochs=epochs,
        trained=trained,
        frozen=tuple(k for k in range(last + 1) if k not in trained),
        pairs=matched.of(trained) if matched and compares else (),
        ramp=phase.ramp if compares else None,
        head=head,
        losses=phase.losses,
        train=relevant(train, phase.losses),
    )
