"""stagedkd: staged knowledge distillation for video classification, from one YAML spec.

    from stagedkd import load_spec, compile_plan, run, report

    spec = load_spec("specs/quickstart.yaml")     # validate: SpecError lists every fault with its place
    plan = compile_plan(spec)                     # a DAG of content-keyed stages; pure, no torch
    outcome = run(spec)                           # execute what the store does not have
    results = report(outcome.plan)                # read manifests and events: tables, metrics.json, report.html

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagedkd._version import __version__

if TYPE_CHECKING:
    from stagedkd.experiment.run import run
    from stagedkd.plan.compile import compile_plan
    from stagedkd.report.write import report
    from stagedkd.spec.load import load_spec

__all__ = ["__version__", "compile_plan", "load_spec", "report", "run"]

_HOME = {
    "load_spec": "stagedkd.spec.load",
    "compile_plan": "stagedkd.plan.compile",
    "run": "stagedkd.experiment.run",
    "report": "stagedkd.report.write",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import stagedkd` stays light."""
    import importlib

    if name in _HOME:
        # a submodule may share the function's name: bind the function for good
        found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return found
    raise AttributeError(f"module 'stagedkd' has no attribute '{name}'")
