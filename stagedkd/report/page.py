"""The pages of a report, each one file without scripts that needs no network, and the plots that lie beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import yaml

from stagedkd._version import __version__
from stagedkd.plan.graph import Plan
from stagedkd.report import tables
from stagedkd.report.bench import FILE as BENCH
from stagedkd.report.bench import Bench
from stagedkd.report.card import CARD, WEIGHTS
from stagedkd.report.comparison import flops_text
from stagedkd.report.evidence import Evidence, Predictions, bare_stages
from stagedkd.report.headline import headline, pct
from stagedkd.report.plots.answers import networks_plot, reliability, reliability_plot
from stagedkd.report.plots.curves import loss_curves, term_shares, validation_curves
from stagedkd.report.plots.figure import Plot
from stagedkd.report.plots.maps import confusion_map, correlation_maps, shares_map
from stagedkd.report.results import Results
from stagedkd.report.tables import Link, Table
from stagedkd.report.templates import template

MATRIX = 20  # classes up to which a confusion matrix can be read
FILES = {
    WEIGHTS: "the weights of the student",
    CARD: "what whoever runs the student must know",
    "README.md": "a model card",
    "metrics.json": "all results, for programs",
    BENCH: "timings",
    "cells.csv": "a row for every network of every cell",
    "table.tex": "the table for a paper",
    "demo": "a page that runs the student in a browser",
}
SECTIONS = (
    ("results", "Results"),
    ("wrong", "Wrong clips"),
    ("confusion", "Confusion"),
    ("reliability", "Reliability"),
    ("classes", "Classes"),
    ("bench", "Bench"),
    ("validation", "Validation"),
    ("losses", "Losses"),
    ("shares", "Shares"),
    ("correlation", "Correlation"),
    ("refinement", "Refinement"),
    ("settings", "Settings"),
    ("costs", "Accuracy and cost"),
    ("comparison", "Comparison"),
    ("groups", "Groups"),
    ("cells", "Cells"),
    ("files", "Files"),
    ("reproduce", "How it was made"),
)


@dataclass(frozen=True)
class Page:
    """A page: its text, and its plots, which are written beside it for print."""

    text: str
    plots: tuple[Plot, ...]


def experiment_page(
    results: Results,
    evidence: Evidence | None = None,
    notes: Sequence[str] = (),
    bench: Bench | None = None,
    files: Sequence[Path] = (),
    root: Path | None = None,
    *,
    prints: bool = True,
) -> Page:
    """Make the page of an experiment.

    Args:
        notes: to be shown beside those of the results. bench: of the student.
        files: those that lie beside the page, relative to it.
        root: the project's folder, which the page does not name. prints: the plots for print lie beside the page.
    """
    evidence, root = evidence or Evidence(), root or Path()
    pair = (results.teacher.name, results.student.name)
    answers = {name: evidence.predictions[name] for name in pair if name in evidence.predictions}
    drawn = _plots(results, answers)
    spec = yaml.safe_dump(results.plan.spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)
    times = [stage.seconds for stage in evidence.stages if stage.seconds is not None]
    values = {
        "r": results,
        "evidence": evidence,
        "prints": prints,
        "lead": headline(results, evidence),
        "notes": [without_folders(note, root) for note in (*results.notes, *notes)],
        "mistakes": evidence.mistakes,
        "bench": bench,
        "tables": _tables(results, evidence, bench, answers),
        "truth": any(x.before is not None for x in results.refinements),
        "files": links(files),
        "commands": _commands(results.plan, files, root),
        "total": tables.seconds(sum(times)) if times else "",
        "spec": without_folders(spec, root),
        **drawn,
    }
    return Page(rendered("report.html.j2", values), tuple(_all_plots(drawn)))


def _plots(results: Results, answers: Mapping[str, Predictions]) -> dict[str, Any]:
    """The plots of an experiment, by the names that the template knows. `answers` are those of teacher and student."""
    classes = results.data["classes"]
    few = 1 < len(classes) <= MATRIX
    return {
        "networks": networks_plot(results.networks, results.split) if results.student.measured else None,
        "confusions": [confusion_map(n, p.confusions, classes) for n, p in answers.items()] if few else [],
        "reliabilities": [reliability_plot(name, reliability(p)) for name, p in answers.items()],
        "validations": validation_curves(results),
        "losses": loss_curves(results.curves),
        "terms": term_shares(results.curves),
        "maps": {name: correlation_maps(name, c) for name, c in results.correlations.items()},
        "pairings": {
            name: shares_map(name, c.mixtures, c.student, c.teacher)
            for name, c in results.correlations.items()
            if c.mixtures
        },
    }


def _all_plots(value: object) -> Iterator[Plot]:
    """The plots in nested lists and mappings, in order."""
    if isinstance(value, Plot):
        yield value
    elif isinstance(value, dict):
        yield from _all_plots(list(cast("dict[str, object]", value).values()))
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _all_plots(each)


def _tables(
    results: Results, evidence: Evidence, bench: Bench | None, answers: Mapping[str, Predictions]
) -> dict[str, Any]:
    """The tables of an experiment, by the names that the template knows."""
    return {
        "results": tables.results_table(results),
        "cost": tables.cost_table(results),
        "classes": tables.class_table(results, evidence),
        "confusion": tables.confusion_table(results, evidence),
        "reliability": [tables.reliability_table(name, reliability(p)) for name, p in answers.items()],
        "bench": tables.bench_table(bench) if bench else None,
        "validation": tables.validation_table(results),
        "epochs": tables.epochs_table(results),
        "losses": tables.loss_table(results),
        "correlations": {name: tables.correlation_table(name, c) for name, c in results.correlations.items()},
        "refinement": tables.refinement_table(results.refinements),
        "recall": tables.recall_table(results),
        "stages": tables.stage_table(evidence.stages or bare_stages(results.plan)),
        "versions": Table("Versions", ("of", "is"), list(evidence.versions.items()), (1,))
        if evidence.versions
        else None,
    }


def _commands(plan: Plan, files: Sequence[Path], root: Path) -> list[str]:
    """The commands that make the results again."""
    weights = any(file.name == WEIGHTS for file in files)
    file = without_folders(plan.spec.origin.file, root)
    file = Path(file).name if Path(file).is_absolute() else file
    run = replace(plan.spec.origin, file=file, further={}).command("run")
    return [run, shlex.join(["stagedkd", "reproduce", f"results/{plan.name}"]) if weights else ""]


def without_folders(text: str, root: Path) -> str:
    """Return a text without the folders of this machine: the project's is left out, and the user's becomes `~`."""
    for folder, sign in ((root.resolve(), ""), (Path.home(), "~/")):
        if len(folder.parts) > 1:
            text = text.replace(f"{folder}/", sign)
    return text


def links(files: Sequence[Path]) -> list[tuple[Link, str]]:
    """Links to the files beside a page that a reader may look for, with words on each."""
    rows = [(file, FILES[file.name]) for file in files if len(file.parts) == 1 and file.name in FILES]
    rows += [(file, "an export of the student") for file in files if len(file.parts) == 2 and file.parts[0] == "export"]
    return [(Link(file.as_posix(), _address(file)), words) for file, words in rows]


def _address(file: Path) -> str:
    """The address of a file or folder, relative to the page."""
    end = "/index.html" if file.name == "demo" else "" if "." in file.name else "/"
    return quote(file.as_posix()) + end


def rendered(name: str, values: Mapping[str, Any]) -> str:
    """The text of a page, with a list of those sections that it has."""
    fixed = {"pct": pct, "flops": flops_text, "version": __version__, "folds": tables.FOLDS, "whole": tables.WHOLE}
    page = template(name).render(**values, **fixed, sections=())
    present = set(re.findall(r'<section id="([a-z]+)"', page))
    return template(name).render(**values, **fixed, sections=[row for row in SECTIONS if row[0] in present])
