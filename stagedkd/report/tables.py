"""The tables of an experiment's page. A table is data; `parts.html.j2` writes it, and folds it where it is narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from stagedkd.report.bench import Bench
from stagedkd.report.comparison import flops_text
from stagedkd.report.evidence import Evidence, StageFacts
from stagedkd.report.headline import pct
from stagedkd.report.plots.answers import Bin
from stagedkd.report.plots.curves import best_validation
from stagedkd.report.results import Correlation, NetworkResult, Refinement, Results, share_text

DASH = "-"
PAIRS = 12  # most confused pairs of classes that are shown
FOLDS = {"narrow": 21, "middle": 34, "broad": 60, "huge": 76, "listed": 1000}  # rem: where there is less, a table folds
LETTER, GAP, WHOLE = 0.6, 1.2, 24  # rem of a letter and between two columns; letters up to which a text does not break


@dataclass(frozen=True)
class Link:
    """A cell that leads elsewhere: its text and its address, relative to the page."""

    text: str
    href: str


Cell = str | Link


@dataclass(frozen=True)
class Table:
    """A table: `caption` says what it shows, the first column names the rows. `texts` are the numbers of the further
    columns that hold words and not numbers. `strong` is the number of the row that matters most, -1 for none."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[int] = ()
    strong: int = -1

    @property
    def width(self) -> str:
        """How soon it folds: the first width of `FOLDS` that has room for its columns."""
        needed = 0.0
        for i, head in enumerate(self.heads):
            cells = [row[i] for row in self.rows]
            texts = [cell if isinstance(cell, str) else cell.text for cell in cells]
            longest = max((len(text) for text in [*texts, *head.split()]), default=0)
            needed += GAP + LETTER * (min(longest, WHOLE) if i == 0 or i in self.texts else longest)
        return next(name for name, size in FOLDS.items() if needed <= size or name == "listed")


def results_table(results: Results) -> Table:
    """The networks: accuracy, size and labels."""

    def row(n: NetworkResult) -> tuple[str, ...]:
        ratio = n.smaller_than(results.teacher)
        span = f"{pct(n.interval[0])} to {pct(n.interval[1])}" if n.measured else DASH
        return (
            n.name,
            n.arch,
            pct(n.top1) if n.measured else DASH,
            span,
            f"{n.params:,}" if n.params else DASH,
            f"{ratio:.1f}x" if ratio is not None else DASH,
            f"{n.flops / 1e6:,.1f}",
            n.labels_used,
        )

    heads = ("network", "architecture", "top-1", "95% interval", "parameters", "smaller", "MFLOPs", "labels used")
    return Table("Networks", heads, [row(n) for n in results.networks], (1, 7), _student(results))


def cost_table(results: Results) -> Table:
    """The networks: calibration and what they took."""

    def row(n: NetworkResult) -> tuple[str, ...]:
        return (
            n.name,
            maybe(n.top5, pct),
            f"{n.ece:.3f}" if n.measured else DASH,
            f"{n.steps:,}",
            flops_text(n.train_flops),
            maybe(n.seconds, seconds),
            maybe(n.latency, lambda value: f"{1000 * value:.1f} ms"),
            maybe(n.dead, pct),
        )

    heads = ("network", "top-5", "ECE", "steps", "training compute", "training time", "latency", "dead channels")
    return Table("Calibration and cost", heads, [row(n) for n in results.networks], (), _student(results))


def _student(results: Results) -> int:
    return results.networks.index(results.student)


def class_table(results: Results, evidence: Evidence) -> Table:
    """The classes: their labelled training clips, their evaluated clips, and the top-1 of each network."""
    classes, networks = results.data["classes"], [n for n in results.networks if n.per_class]
    clean = {classes[c]: n for (c, origin), n in evidence.given.items() if origin == "clean" and c < len(classes)}
    noisy = {classes[c]: n for (c, origin), n in evidence.given.items() if origin != "clean" and c < len(classes)}
    answers = next(iter(evidence.predictions.values()), None)
    evaluated = [answers.label.count(i) for i in range(len(classes))] if answers else []
    rows: list[list[str]] = []
    for i, name in enumerate(classes):
        row = [name]
        row += [f"{clean.get(name, 0):,}"] if evidence.given else []
        row += [f"{noisy.get(name, 0):,}"] if noisy else []
        row += [f"{evaluated[i]:,}"] if answers else []
        rows.append(row + [pct(n.per_class[name]) if name in n.per_class else DASH for n in networks])
    heads = ["class", *(["labelled"] if evidence.given else []), *(["noisy"] if noisy else [])]
    heads += [*(["evaluated"] if answers else []), *(f"top-1 of {n.name}" for n in networks)]
    return Table("Classes", heads, rows)


def confusion_table(results: Results, evidence: Evidence) -> Table | None:
    """The pairs of classes that the student confuses most often, beside its teacher; None without errors."""
    student, teacher = (evidence.predictions.get(n.name) for n in (results.student, results.teacher))
    if student is None:
        return None
    classes, counts = results.data["classes"], student.confusions
    others = teacher.confusions if teacher else None
    pairs = sorted((-n, a, b) for (a, b), n in counts.items() if a != b)[:PAIRS]
    totals = [student.label.count(i) for i in range(len(classes))]
    rows = [
        [
            classes[a],
            classes[b],
            f"{-n:,} of {totals[a]:,}",
            *([f"{others[a, b]:,} of {teacher.label.count(a):,}"] if others is not None and teacher else []),
        ]
        for n, a, b in pairs
    ]
    heads = ["class", "taken for", "clips, student", *(["clips, teacher"] if others is not None else [])]
    return Table("The pairs that the student confuses most often", heads, rows, (1,)) if rows else None


def reliability_table(network: str, bins: Sequence[Bin]) -> Table:
    """The bins of a reliability diagram."""
    rows = [
        (f"{10 * b.number} to {10 * b.number + 10}%", f"{b.clips:,}", pct(b.confidence), pct(b.accuracy)) for b in bins
    ]
    return Table(f"Reliability of the {network}", ("confidence", "clips", "mean", "right"), rows)


def bench_table(bench: Bench) -> Table:
    """What `stagedkd bench` has measured."""
    rows = [
        (
            each.runtime,
            f"{1000 * each.median:.2f} ms",
            f"{1000 * each.p95:.2f} ms",
            f"{each.spread:.0%}",
            f"{each.throughput:.1f}",
            f"{each.batch}",
            DASH if each.memory is None else decimal(each.memory),
            decimal(each.bytes),
        )
        for each in bench.timings
    ]
    heads = ("runtime", "median", "95th percentile", "spread", "clips/s", "batch", "memory", "size")
    return Table("Timings of the student and its exports", heads, rows)


def loss_table(results: Results) -> Table:
    """The share of each loss in each phase."""
    losses = list(dict.fromkeys(name for row in results.loss_shares for name in row.shares))
    rows = [(row.network, row.phase, *(share_text(row.shares.get(n)) for n in losses)) for row in results.loss_shares]
    return Table("Shares of the losses, by phase", ("network", "phase", *losses), rows, (1,))


def epochs_table(results: Results) -> Table:
    """The last epoch of each network's training: its losses."""
    rows = [
        (name, f"{len(events)}", str(events[-1]["phase"]), f"{events[-1]['losses'].get('total', 0.0):.4g}")
        for name, events in results.curves.items()
        if events
    ]
    return Table("End of each training", ("network", "epochs", "last phase", "total loss, weighted"), rows, (2,))


def validation_table(results: Results) -> Table:
    """The best and the last validation of each network."""
    rows: list[tuple[str, ...]] = []
    for name, events in results.validation.items():
        best, last = best_validation(events), events[-1]
        where = f"{best.phase}, epoch {best.epoch} (step {best.step:,})"
        rows.append((name, pct(best.top1), where, pct(last.top1), f"{last.loss:.4g}", f"{last.clips:,}"))
    heads = ("network", "best", "reached in", "last", "last loss", "clips")
    return Table("Validation while training", heads, rows, (2,))


def correlation_table(name: str, correlation: Correlation) -> Table:
    """The correlation of each pair of substages, before and after."""
    rows = [
        (f"{s} and {t}", f"{correlation.before[k][m]:.2f}", f"{correlation.after[k][m]:.2f}")
        for k, s in enumerate(correlation.student)
        for m, t in enumerate(correlation.teacher)
    ]
    return Table(f"Correlation of the {name}", ("student and teacher", "before", "after"), rows)


def refinement_table(rounds: Sequence[Refinement]) -> Table:
    """The rounds of refinement. What only a known truth tells is left out where nobody has it."""
    known = any(x.before is not None for x in rounds)

    def row(x: Refinement) -> list[str]:
        measured = [maybe(x.before, pct), maybe(x.after, pct)] if known else []
        changes = [f"{x.wrong_to_right:,}", f"{x.right_to_wrong:,}"] if known else []
        precision = [maybe(x.precision, pct)] if known else []
        scores = [maybe(value, lambda v: f"{v:.3f}") for value in (x.ece, x.nll)]
        return [f"{x.round}", x.outcome, *measured, pct(x.coverage), *precision, *scores, *changes]

    heads = ["round", "outcome", *(["right before", "right after"] if known else []), "coverage"]
    heads += [*(["precision"] if known else []), "ECE", "NLL"]
    heads += ["wrong to right", "right to wrong"] if known else []
    return Table("Rounds of refinement", heads, [row(x) for x in rounds], (1,))


def recall_table(results: Results) -> Table | None:
    """The recall of the refined labels, by class; None where it is unknown."""
    rounds = [x for x in results.refinements if x.recall]
    rows = [(c, *(maybe(x.recall.get(c), pct) for x in rounds)) for c in results.data["classes"]]
    heads = ("class", *(f"round {x.round}" for x in rounds))
    return Table("Recall of the labels, by class", heads, rows) if rounds else None


def stage_table(stages: Sequence[StageFacts]) -> Table:
    """The stages, with the times of those that have run on a machine that we know of."""
    rows = [(s.name, s.folder, s.date or DASH, maybe(s.seconds, seconds), s.device or DASH) for s in stages]
    return Table("Stages", ("stage", "artifact", "began (UTC)", "time", "device"), rows, (1, 2, 4))


def maybe(value: float | None, write: Callable[[float], str]) -> str:
    """Write a value, or a dash where there is none."""
    return DASH if value is None else write(value)


def seconds(value: float) -> str:
    """Write a time in the unit that suits it."""
    if value < 100:
        return f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 100 else f"{value / 3600:.1f} h"
