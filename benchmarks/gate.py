"""The gate of a table of evidence: before its seeds are run, one seed of every setting is looked at, on validation, for
what made earlier tables void.

    python benchmarks/gate.py SPEC [--seed N] [--fold N] [--jobs N] [--other-compute LABEL ...]

It runs the cells of one seed with evaluate.split=val (their trainings are those of the table; the test split is not
touched). It prints the task against its ceiling and chance, then for every setting its accuracy, compute beside the
baseline's, sizes and rates of the networks, the rate at the end of each phase, the labelled clips of a step, and the
shares of the losses. It names dead channels, narrow layers, networks that are nearly of one size, phases that end near
their peak rate, mixtures that substages outside of the phase carry, and rates at the edge of what was tried.
--other-compute names the settings that are meant to have another compute. Exit status 1: something does not hold.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from stagedkd.experiment.run import run_experiment
from stagedkd.plan.graph import Plan
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.runtime import load_runtime
from stagedkd.plan.work import DistillWork
from stagedkd.report.collect import collect
from stagedkd.report.results import Results
from stagedkd.spec.grid import setting_of
from stagedkd.spec.labelled import labels_alone
from stagedkd.spec.load import load_experiment
from stagedkd.spec.tuned import edge_notes
from stagedkd.stages.context import Silent
from stagedkd.store.store import Store
from stagedkd.train.schedule import phase_rates

REPO = Path(__file__).resolve().parent.parent
CEILING, FLOOR, GAP = 0.95, 0.85, 0.05  # of the teacher; and how far the baseline must be below it
NARROW, DEAD, EQUAL = 8, 0.25, 0.03  # channels, share of them, and how far compute may differ
HEADS = ("setting", "top-1", "compute", "networks: parameters, rate", "rate at the end", "labelled a step", "losses")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", help="of a grid whose folds take turns; unset: its first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--other-compute", nargs="*", default=[], metavar="LABEL")
    options = parser.parse_args()
    runtime = load_runtime(REPO, jobs=options.jobs, threads=1)
    folds = load_experiment(options.spec).axes.get("fold", ())
    cells = f"seed={options.seed}" + (f",fold={options.fold or folds[0]}" if folds else "")
    experiment = load_experiment(options.spec, ["evaluate.split=val"], cells=[cells])
    outcome = run_experiment(experiment, runtime, Silent())
    for error in outcome.failed.values():
        raise error
    store = Store(runtime.folder("store"))
    names = {cell: setting_of(labels) for cell, labels in outcome.plans.labels.items()}
    settings = {names[cell]: collect(plan, store) for cell, plan in outcome.plans.cells.items()}
    declared = experiment.declared.baseline if experiment.declared else outcome.plans.labels[next(iter(names))]
    beside = {names[cell]: setting_of({**labels, **declared}) for cell, labels in outcome.plans.labels.items()}
    baselines = {base: settings[base] for base in dict.fromkeys(beside.values()) if base in settings}
    print(f"{options.spec}, {cells}, validation\n")
    titles = {base: f"{base}: " if len(baselines) > 1 else "" for base in baselines}
    tasks = [(titles[base] + line, holds) for base, results in baselines.items() for line, holds in task(results)]
    print("\n".join(f"{line}: {'yes' if holds else 'NO'}" for line, holds in tasks))
    failed = [line for line, holds in tasks if not holds]
    for name, results in settings.items():
        failed += faults(name, results)
        if beside[name] not in settings:
            failed.append(f"{name}: the grid has no baseline for it")
            continue
        ratio = compute(results, settings[beside[name]])
        if not abs(ratio - 1) <= EQUAL and not any(name.endswith(f"={label}") for label in options.other_compute):
            failed.append(f"{name}: {ratio:.2f} of the baseline's compute")
    print("\n| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for name, results in settings.items():
        print("| " + " | ".join((name, *row(results, settings.get(beside[name])))) + " |")
    failed += edge_notes(experiment.tuned)
    print("\n" + ("\n".join(f"does not hold: {line}" for line in failed) or "all holds"))
    sys.exit(bool(failed))


def compute(results: Results, baseline: Results | None) -> float:
    """The training compute of all hops beside the baseline's; NaN where one is unknown."""
    return (results.train_flops or math.nan) / ((baseline and baseline.train_flops) or math.nan)


def task(baseline: Results) -> Iterator[tuple[str, bool]]:
    """What the task must be, each with whether it is."""
    teacher, student = baseline.teacher, baseline.student
    chance = max(1 / student.classes, student.commonest or 0)
    lines = (
        (f"teacher {teacher.top1:.1%}, between {FLOOR:.0%} and {CEILING:.0%}", FLOOR <= teacher.top1 <= CEILING),
        (
            f"baseline {student.top1:.1%}, at least {100 * GAP:.0f} points below the teacher",
            teacher.top1 - student.top1 >= GAP,
        ),
        (f"baseline above chance, {chance:.1%}", not student.near_chance),
    )
    yield from lines


def faults(name: str, results: Results) -> Iterator[str]:
    """What the gate asks of every setting and does not find, but for its compute."""
    for network in results.hops:
        if network.dead is not None and network.dead > DEAD:
            yield f"{name}: {network.dead:.0%} of the channels of the {network.name} are dead"
    sizes = [network.params for network in (results.teacher, *results.hops) if network.params]
    if any(above < 1.5 * below for above, below in pairwise(sizes)):
        yield f"{name}: two networks of the cascade are nearly of one size: {sizes}"
    for stage, work in hops(results.plan):
        width = getattr(work.arch, "width", NARROW)
        if width < NARROW:
            yield f"{name}: the {stage} has {width} channels"
        for number, phase in enumerate(work.phases):
            _, peak, end = phase_rates(work.phases, number)
            if end > peak / 2:
                yield f"{name}: phase {phase.name} of the {stage} ends at {end:.2g}, near its peak"
    for note in (note for shares in results.loss_shares for note in shares.notes):
        yield f"{name}: {note}"
    yield from (f"{name}: {line}" for line in mixtures(results))


def mixtures(results: Results) -> Iterator[str]:
    """Phases whose match is carried by substages that they do not train."""
    works = dict(hops(results.plan))
    for name, correlation in results.correlations.items():
        trained = {phase.name: set(phase.trained) for phase in works[name].phases}
        for mixture in correlation.mixtures:
            for m, column in enumerate(zip(*mixture["shares"], strict=True)):
                known = {k: share for k, share in enumerate(column) if share is not None}
                own = sum(share for k, share in known.items() if k in trained[mixture["phase"]])
                if known and own < 0.5:
                    yield f"substages in training carry {own:.0%} of substage {m + 1} in {mixture['phase']} of {name}"


def row(results: Results, baseline: Results | None) -> tuple[str, ...]:
    """The cells of a setting's row."""
    works = dict(hops(results.plan))
    student = works[results.student.name]
    networks = [f"{n.name} {n.params:,}, {works[n.name].phases[-1].train.lr:g}" for n in results.hops]
    rates = [f"{phase.name} {phase_rates(student.phases, i)[2]:.2g}" for i, phase in enumerate(student.phases)]
    labelled = [f"{phase.name} {labelled_clips(phase, results):.0f} of {phase.train.batch}" for phase in student.phases]
    losses = [
        f"{shares.phase}: " + ", ".join(f"{loss} {share:.0%}" for loss, share in shares.shares.items())
        for shares in results.loss_shares
        if shares.network == results.student.name
    ]
    dead = f" ({results.student.dead:.0%} dead)" if results.student.dead else ""
    return (
        f"{results.student.top1:.1%}{dead}",
        f"{compute(results, baseline):.2f}",
        *("; ".join(parts) for parts in (networks, rates, labelled, losses)),
    )


def labelled_clips(phase: PhaseWork, results: Results) -> float:
    """The labelled clips in a step of a phase of the student, on average."""
    if labels_alone(phase.losses):
        return phase.train.batch
    if phase.train.labelled is not None:
        return phase.train.labelled * phase.train.batch
    return phase.train.batch * results.student.labelled_clips / results.student.training_clips


def hops(plan: Plan) -> Iterator[tuple[str, DistillWork]]:
    """The hops of a plan, by the name of their stage."""
    for stage in plan.stages:
        if isinstance(stage.work, DistillWork):
            yield stage.name, stage.work


if __name__ == "__main__":
    main()
