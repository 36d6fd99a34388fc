"""Write results/<name>/: metrics.json, report.html, the student's weights, and the files that DVC shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stagedkd.dvc.pipeline import PAGE, PLOTS, SUMMARY
from stagedkd.errors import Advice, StoreError, about, remedy
from stagedkd.files import replacing, write_whole
from stagedkd.plan.graph import Plan, Plans
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.plan.work import EvaluateWork, NetworkWork
from stagedkd.report.bench import read_bench
from stagedkd.report.card import CARD, WEIGHTS, StudentCard, accuracy_of, new_card
from stagedkd.report.collect import collect
from stagedkd.report.evidence import read_evidence
from stagedkd.report.formats import as_csv, as_latex
from stagedkd.report.formats import as_json as grid_json
from stagedkd.report.grid import GridResults, collect_grid
from stagedkd.report.grid_page import grid_page
from stagedkd.report.looks import record_looks
from stagedkd.report.model_card import model_card
from stagedkd.report.page import Page, experiment_page
from stagedkd.report.results import Results
from stagedkd.report.summary import grid_plots, grid_summary, plots, summary
from stagedkd.store.store import Artifact, Store

METRICS = "metrics.json"


def write_report(plan: Plan, runtime: Runtime | None = None) -> Results:
    """Collect the results of a plan that has run and write them to results/<name>/.

    Raises:
        StoreError: a stage is missing from the store.
    """
    runtime = runtime or load_runtime(Path())
    with about(plan.spec.origin):
        store = Store(runtime.folder("store"))
        results = collect(plan, store)
        try:
            looks = record_looks([plan], Path(runtime.root)).note
            _write_files(results, store, runtime, looks)
        except OSError as error:
            raise _write_error(error) from error
    return results


def _write_files(results: Results, store: Store, runtime: Runtime, looks: str) -> None:
    """Write the files of a report. Raises OSError, StoreError."""
    folder, root = results_folder(results.plan, runtime), Path(runtime.root)
    evidence = read_evidence(results.plan, store, root)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / METRICS, _json(as_json(results)))
    write_whole(folder / SUMMARY, _json(summary(results)))
    for name, rows in plots(results).items():
        write_whole(folder / name, _json(rows))
    artifact = store.artifact(results.plan.stage("student"))
    weights = artifact.read(WEIGHTS)
    with replacing(folder / WEIGHTS) as copy:  # the file may be a link into DVC's cache
        copy.write_bytes(weights)
    card = student_card(results, artifact)
    write_whole(folder / CARD, card.text)
    write_whole(folder / "README.md", model_card(results, card, evidence))
    bench, problem = read_bench(folder, card.weights)
    notes = [note for note in (looks, problem) if note]
    beside, prints = files_beside(folder), runtime.print_plots
    page = experiment_page(results, evidence, notes, bench, beside, root, prints=prints)
    _write_page(folder, page, prints=prints)


def files_beside(folder: Path) -> list[Path]:
    """Return the files and folders of a results folder, and those of its exports, relative to it."""
    return sorted(path.relative_to(folder) for path in (*folder.glob("*"), *folder.glob("export/*/")))


def _write_page(folder: Path, page: Page, *, prints: bool) -> None:
    """Write a page, and its plots for print, if they are wanted, in place of those that lie there."""
    write_whole(folder / PAGE, page.text)
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    files = {name: content for plot in page.plots if prints for name, content in plot.files().items()}
    for name, content in files.items():
        with replacing(plots / name) as copy:
            copy.write_bytes(content)
    for path in plots.iterdir():
        if path.suffix in (".pdf", ".png") and path.name not in files:
            path.unlink()


def student_card(results: Results, artifact: Artifact) -> StudentCard:
    """Make the card of the student of an experiment."""
    student, teacher, work = results.student, results.teacher, artifact.manifest.work
    evaluation = results.plan.stage("evaluate-student").work
    assert isinstance(work, NetworkWork) and isinstance(evaluation, EvaluateWork)
    return new_card(
        results.plan.name,
        artifact.manifest.key,
        work,
        results.data["classes"],
        artifact.manifest.files[WEIGHTS],
        views=(evaluation.clips, evaluation.crops),
        batch=evaluation.batch,
        accuracy=accuracy_of(
            results.split, results.data["clips"][results.split], student.top1, student.interval, student.ece
        ),
        teacher={
            "arch": teacher.arch,
            "parameters": teacher.params,
            "top1": teacher.top1 if teacher.measured else None,
        },
        parameters=student.params,
        flops=student.flops,
    )


def bench_problem(plan: Plan, runtime: Runtime) -> str:
    """Return why the report does not show the bench.json beside its student; "" if it does, or if there is none."""
    student = Store(runtime.folder("store")).artifact(plan.stage("student"))
    return read_bench(results_folder(plan, runtime), student.manifest.files[WEIGHTS])[1]


def is_written(plan: Plan, runtime: Runtime) -> bool:
    """Return whether results/<name>/ has the report of just these stages: an edited spec writes to the same folder."""
    folder = results_folder(plan, runtime)
    try:
        written: Any = json.loads((folder / METRICS).read_text("utf-8"))
        same = written["stages"] == {stage.name: stage.identity for stage in plan.stages}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and (folder / PAGE).exists()


def report_grid(plans: Plans, runtime: Runtime, baseline: str = "", *, anew: bool = True) -> GridResults:
    """Collect what the store has of a grid and write results/<name>/: metrics.json, cells.csv, table.tex, report.html,
    its plots, and the files that DVC shows.

    Args:
        baseline: such as "recipe=kd", picks the row that the others are compared with; without it, the first row.
        anew: write the files even where those on the disk have the same results.
    Raises:
        StoreError: the store has no finished cell.
        UsageError: `baseline` picks no row, or several.
    """
    grid = collect_grid(plans, Store(runtime.folder("store")), baseline)
    folder = results_folder(plans, runtime)
    looks = record_looks([plans.cells[name] for name in grid.cells], Path(runtime.root)).note
    values = _json(grid_json(grid))
    if not anew and (folder / PAGE).is_file() and _has(folder / METRICS, values):
        return grid
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / METRICS, values)
        write_whole(folder / SUMMARY, _json(grid_summary(grid)))
        for name, rows in grid_plots(grid).items():
            write_whole(folder / name, _json(rows))
        write_whole(folder / "cells.csv", as_csv(grid))
        write_whole(folder / "table.tex", as_latex(grid))
        beside, prints, root = files_beside(folder), runtime.print_plots, Path(runtime.root)
        page = grid_page(grid, looks, _cell_pages(plans, folder), beside, root, prints=prints)
        _write_page(folder, page, prints=prints)
    except OSError as error:
        raise _write_error(error) from error
    return grid


def _cell_pages(plans: Plans, folder: Path) -> dict[str, str]:
    """The addresses of the pages of those cells that have one, relative to the grid's folder."""
    names = {cell: plan.name for cell, plan in plans.cells.items() if (folder.parent / plan.name / PAGE).is_file()}
    return {cell: f"../{quote(name)}/{PAGE}" for cell, name in names.items()}


def _has(path: Path, text: str) -> bool:
    """Return whether a file has this text."""
    try:
        return path.read_text("utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def _write_error(error: OSError) -> StoreError:
    return StoreError(f"cannot write the report: {error}", hint=Advice(f"{remedy(error)}, then run", "report"))


def results_folder(plan: Plan | Plans, runtime: Runtime) -> Path:
    """Return results/<name>."""
    return runtime.folder("results") / plan.name


def as_json(results: Results) -> dict[str, Any]:
    """Return the values of metrics.json: teacher, assistants, student, control, and what they were measured on."""
    teacher = results.teacher
    return {
        "name": results.plan.name,
        "stages": {stage.name: stage.identity for stage in results.plan.stages},
        "split": results.split,
        "views": results.views,
        "teacher": teacher.as_json(teacher),
        "assistants": [network.as_json(teacher) for network in results.assistants],
        "student": results.student.as_json(teacher),
        "control": results.control.as_json(teacher) if results.control else None,
        "train_flops": {"hops": results.train_flops, "teacher": teacher.train_flops},
        "refinement": [dict(refinement.__dict__) for refinement in results.refinements],
        "loss_shares": [{**row.__dict__, "shares": dict(row.shares)} for row in results.loss_shares],
        "clips": results.data["clips"],
        "labels": results.labels,
        "notes": list(results.notes),
    }


def _json(values: Any) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
