"""Print the identity and the notes of every stage of every shipped spec, so that two commits can be compared.

    python benchmarks/keys.py > before.txt        # PYTHONPATH=OTHER_CHECKOUT for the code of another commit

Nothing is run and no data is read: the keys come from the specs and from stagedkd.lock.
"""

from __future__ import annotations

from pathlib import Path

from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.lock import read_lock
from stagedkd.spec.load import load_experiment

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    lock = read_lock(ROOT / "stagedkd.lock")
    unique: set[str] = set()
    for path in sorted((ROOT / "specs").rglob("*.yaml")):
        if path.name.endswith(".tuned.yaml"):
            continue
        experiment = load_experiment(path)
        plans = compile_experiment(experiment, lock)
        name = path.relative_to(ROOT).as_posix()
        unique |= set(plans.unique)
        for problem in experiment.notes:
            print(f"{name}: {problem.severity}: {problem.message}")
        for cell, plan in plans.cells.items():
            for note in plan.notes:
                print(f"{name} {cell}: {note}")
            for stage in plan.stages:
                above = {label: plan.stage(other).identity for label, other in stage.needs.items()}
                print(f"{name} {cell}: {stage.name} {stage.work.kind} {stage.identity} {stage.locked} {above}")
    print(f"{len(unique)} unique stages")


if __name__ == "__main__":
    main()
