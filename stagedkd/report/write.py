"""Write results/<name>/: metrics.json, report.html and the student's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from stagedkd.errors import StoreError
from stagedkd.plan.graph import Plan
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.report.collect import Results, collect
from stagedkd.store.store import Store


def report(plan: Plan, runtime: Runtime | None = None) -> Results:
    """Collect the results of a plan that has run and write them to results/<name>/.

    Raises:
        StoreError: a stage is missing in the store.
    """
    runtime = runtime or load_runtime(Path())
    store = Store(runtime.folder("store"))
    results = collect(plan, store)
    folder = results_folder(plan, runtime)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "metrics.json", json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
        _write(folder / "report.html", page(results))
        shutil.copyfile(
            store.artifact(plan.stage("student")).file("student.safetensors"), folder / "student.safetensors"
        )
    except OSError as error:
        raise StoreError(
            f"cannot write the report: {error}", hint="free some space, then: stagedkd report SPEC"
        ) from error
    return results


def results_folder(plan: Plan, runtime: Runtime) -> Path:
    """results/<name>."""
    return runtime.folder("results") / plan.name


def as_json(results: Results) -> dict[str, Any]:
    """What metrics.json holds: teacher, assistants, student, control, and what they were measured on."""
    above = results.teacher
    return {
        "name": results.plan.name,
        "split": results.split,
        "views": results.views,
        "teacher": above.as_json(above),
        "assistants": [network.as_json(above) for network in results.assistants],
        "student": results.student.as_json(above),
        "control": results.control.as_json(above) if results.control else None,
        "clips": results.data["clips"],
        "labels": results.labels,
        "notes": list(results.notes),
    }


def page(results: Results) -> str:
    """report.html: one file that needs no network."""
    from jinja2 import Environment, PackageLoader

    from stagedkd.report.figures import loss_curves

    template = Environment(loader=PackageLoader("stagedkd.report", "."), autoescape=True).get_template("report.html.j2")
    spec = yaml.safe_dump(results.plan.spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)
    return template.render(r=results, curves=loss_curves(results), spec=spec, pct=lambda x: f"{100 * x:.1f}%")  # pyright: ignore


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
