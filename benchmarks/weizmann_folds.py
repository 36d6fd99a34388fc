"""The Weizmann spec over its three folds of people, the validation clips pooled: every clip is judged once, by networks
that never saw its person.

    STAGEDKD_DATA=... python benchmarks/weizmann_folds.py [--store DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stagedkd import load_spec, run
from stagedkd.plan.runtime import load_runtime
from stagedkd.report.statistics import wilson
from stagedkd.stages.tables import read_table

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("teacher", "student", "control-ce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "store")
    runtime = load_runtime(ROOT, store=parser.parse_args().store)
    right: dict[str, list[bool]] = {name: [] for name in NETWORKS}
    for fold in range(3):
        outcome = run(load_spec(ROOT / "specs" / "weizmann.yaml", [f"data.fold={fold}"]), runtime)
        for name in NETWORKS:
            table = read_table(outcome.artifacts[f"evaluate-{name}"].read("predictions.parquet"))
            hits = (np.array(table["label"]) == np.array(table["predicted"])).tolist()
            right[name] += hits
            print(f"fold {fold}  {name:<11} {sum(hits)} of {len(hits)}", flush=True)
    for name, hits in right.items():
        low, high = wilson(sum(hits), len(hits))
        share = f"{100 * sum(hits) / len(hits):.1f}%"
        print(
            f"pooled  {name:<11} {share}, 95% interval {100 * low:.1f} to {100 * high:.1f} ({sum(hits)} of {len(hits)})"
        )


if __name__ == "__main__":
    main()
