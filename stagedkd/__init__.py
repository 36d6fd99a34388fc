"""stagedkd: staged knowledge distillation for video classification, from one YAML spec.

    from stagedkd import load_spec, compile_plan, run, report

    spec = load_spec("specs/quickstart.yaml")     # validate: SpecError lists every problem with its place
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
    from stagedkd.report.write import write_report
    from stagedkd.report.write import write_report as report
    from stagedkd.spec.load import load_spec

__all__ = ["__version__", "compile_plan", "load_spec", "report", "run", "write_report"]

_HOME = {
    "load_spec": ("stagedkd.spec.load", "load_spec"),
    "compile_plan": ("stagedkd.plan.compile", "compile_plan"),
    "run": ("stagedkd.experiment.run", "run"),
    "write_report": ("stagedkd.report.write", "write_report"),
    "report": ("stagedkd.report.write", "write_report"),  # the same function, by the name of its command
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import stagedkd` stays light."""
    import importlib

    if name in _HOME:
        module, function = _HOME[name]
        # Bind the function: `report` is also the name of a folder, which Python would bind here.
        globals()[name] = getattr(importlib.import_module(module), function)
        return globals()[name]
    raise AttributeError(f"module 'stagedkd' has no attribute '{name}'")
