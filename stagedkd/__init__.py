"""stagedkd: staged knowledge distillation for video classification, from one YAML spec.

    from stagedkd import load_spec, compile_plan, run, report

    spec = load_spec("specs/quickstart.yaml")     # validate: SpecError lists every problem with its place
    plan = compile_plan(spec)                     # a DAG of content-keyed stages; pure, no torch
    outcome = run(spec)                           # execute what the store does not have
    results = report(outcome.plan)                # read manifests and events: tables, metrics.json, report.html
    student = load_student("results/quickstart")  # its network, classes, preprocess and predict

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import stagedkd.report  # noqa: F401 - binds the folder to its name now, so that the function below keeps the name
from stagedkd._version import __version__

if TYPE_CHECKING:
    from stagedkd.deploy.student import load_student
    from stagedkd.experiment.run import run
    from stagedkd.plan.compile import compile_plan
    from stagedkd.plan.graph import Plan
    from stagedkd.plan.runtime import Runtime
    from stagedkd.report.results import Results
    from stagedkd.report.write import write_report
    from stagedkd.spec.load import load_spec
    from stagedkd.stages.context import Listener, Silent

__all__ = [
    "Listener",
    "Silent",
    "__version__",
    "compile_plan",
    "load_spec",
    "load_student",
    "report",
    "run",
    "write_report",
]

_HOME = {
    "Listener": "stagedkd.stages.context",
    "Silent": "stagedkd.stages.context",
    "load_spec": "stagedkd.spec.load",
    "load_student": "stagedkd.deploy.student",
    "compile_plan": "stagedkd.plan.compile",
    "run": "stagedkd.experiment.run",
    "write_report": "stagedkd.report.write",
}


def report(plan: Plan, runtime: Runtime | None = None) -> Results:
    """Write the report of a plan: `write_report`, under the name of its command."""
    from stagedkd.report.write import write_report

    return write_report(plan, runtime)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import stagedkd` stays light."""
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'stagedkd' has no attribute '{name}'")
