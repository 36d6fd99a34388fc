"""Write results/<name>/: metrics.json, report.html, the student's weights, and what DVC shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from stagedkd.dvc.pipeline import SUMMARY
from stagedkd.errors import StoreError
from stagedkd.files import replacing, write_whole
from stagedkd.plan.graph import Plan, Plans
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.report.collect import Results, collect
from stagedkd.report.comparison import SMALLEST_EFFECT, flops_text, p_text, points
from stagedkd.report.formats import as_csv, as_latex
from stagedkd.report.grid import GridResults, collect_grid
from stagedkd.report.grid import as_json as grid_json
from stagedkd.report.summary import grid_plots, grid_summary, plots, summary
from stagedkd.store.store import Store


def write_report(plan: Plan, runtime: Runtime | None = None) -> Results:
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
        write_whole(folder / "metrics.json", _json(as_json(results)))
        write_whole(folder / "report.html", page(results))
        write_whole(folder / SUMMARY, _json(summary(results)))
        for name, rows in plots(results).items():
            write_whole(folder / name, _json(rows))
        student = store.artifact(plan.stage("student")).file("student.safetensors")
        with replacing(folder / "student.safetensors") as copy:  # what is there may be a link to DVC's cache
            shutil.copyfile(student, copy)
    except OSError as error:
        raise StoreError(
            f"cannot write the report: {error}", hint="free some space, then: stagedkd report SPEC"
        ) from error
    return results


def is_written(plan: Plan, runtime: Runtime) -> bool:
    """Whether results/<name>/ holds the report of these very stages: an edited spec writes to the same folder."""
    folder = results_folder(plan, runtime)
    try:
        known: Any = json.loads((folder / "metrics.json").read_text("utf-8"))
        same = known["stages"] == {stage.name: stage.identity for stage in plan.stages}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and (folder / "report.html").exists()


def report_grid(plans: Plans, runtime: Runtime, baseline: str = "") -> GridResults:
    """Collect what the store has of a grid and write results/<name>/: metrics.json, cells.csv, table.tex, report.html,
    and what DVC shows. `baseline` picks the row that the others are compared with, such as "recipe=kd"; without it the
    first.

    Raises:
        StoreError: it has no finished cell.
        UsageError: `baseline` picks no row, or several.
    """
    found = collect_grid(plans, Store(runtime.folder("store")), baseline)
    folder = results_folder(plans, runtime)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "metrics.json", _json(grid_json(found)))
        write_whole(folder / SUMMARY, _json(grid_summary(found)))
        for name, rows in grid_plots(found).items():
            write_whole(folder / name, _json(rows))
        write_whole(folder / "cells.csv", as_csv(found))
        write_whole(folder / "table.tex", as_latex(found))
        write_whole(folder / "report.html", grid_page(found))
    except OSError as error:
        raise StoreError(
            f"cannot write the report: {error}", hint="free some space, then: stagedkd report SPEC"
        ) from error
    return found


def results_folder(plan: Plan | Plans, runtime: Runtime) -> Path:
    """results/<name>."""
    return runtime.folder("results") / plan.name


def as_json(results: Results) -> dict[str, Any]:
    """What metrics.json holds: teacher, assistants, student, control, and what they were measured on."""
    above = results.teacher
    return {
        "name": results.plan.name,
        "stages": {stage.name: stage.identity for stage in results.plan.stages},
        "split": results.split,
        "views": results.views,
        "teacher": above.as_json(above),
        "assistants": [network.as_json(above) for network in results.assistants],
        "student": results.student.as_json(above),
        "control": results.control.as_json(above) if results.control else None,
        "train_flops": {"hops": results.train_flops, "teacher": above.train_flops},
        "refinement": [dict(found.__dict__) for found in results.refinements],
        "clips": results.data["clips"],
        "labels": results.labels,
        "notes": list(results.notes),
    }


def page(results: Results) -> str:
    """report.html: one file that needs no network."""
    from stagedkd.report.plots import correlation_map, loss_curves

    maps = {name: correlation_map(c.before, c.after, c.student, c.teacher) for name, c in results.correlations.items()}
    spec = yaml.safe_dump(results.plan.spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)
    values = {"r": results, "curves": loss_curves(results), "maps": maps, "spec": spec}
    return _template("report.html.j2").render(**values, pct=_share, flops=flops_text)


def grid_page(found: GridResults) -> str:
    """report.html of a grid: one file that needs no network."""
    from stagedkd.report.plots import settings_plot

    return _template("grid.html.j2").render(
        r=found, plot=settings_plot(found), pct=_percent, flops=flops_text, p=p_text, smallest=points(SMALLEST_EFFECT)
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(share: float) -> str:
    return f"{100 * share:.1f}%"


def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("stagedkd.report", "."), autoescape=True).get_template(name)


def _json(values: Any) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
