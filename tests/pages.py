"""Pages of reports to look at: of a grid in a store that is made by hand, and of experiments with awkward content."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plans, Stage
from stagedkd.report.bench import Bench, Timing
from stagedkd.report.comparison import Comparison, compare
from stagedkd.report.evidence import Evidence, Mistake, Predictions, StageFacts
from stagedkd.report.grid import GridResults
from stagedkd.report.grid_page import grid_page
from stagedkd.report.page import experiment_page
from stagedkd.report.results import Correlation, LossShares, NetworkResult, Refinement, Results, Validation
from stagedkd.report.statistics import wilson
from stagedkd.report.units import Scores
from stagedkd.spec.load import load_experiment
from stagedkd.stages.mistakes import strip
from stagedkd.store.manifest import manifest_of
from stagedkd.store.store import Store
from tests.conftest import TINY

GRID = """\
extends: tiny.yaml
student: {epochs: 3}
control: null
grid:
  seeds: 7
  axes:
    recipe: [kd, ce, ./staged.yaml]
    train.lr: [1e-3, 1e-2]
  exclude: [{recipe: staged, train.lr: 1e-3}]
"""
STAGED = "cascade: [0.5]\ndistill: {phases: {train: {losses: {kd: 1.0}}}}\n"
TOPS = {  # per recipe and rate, for seven seeds
    ("kd", "0.001"): [0.50, 0.55, 0.45, 0.60, 0.40, 0.52, 0.58],
    ("kd", "0.01"): [0.505, 0.552, 0.451, 0.607, 0.409, 0.523, 0.586],
    ("ce", "0.001"): [0.40, 0.44, 0.36, 0.47, 0.33, 0.41, 0.45],
    ("ce", "0.01"): [0.51, 0.53, 0.46, 0.58, 0.43, 0.51, 0.57],
    ("staged", "0.01"): [0.70, 0.71, 0.69, 0.80, 0.60, 0.70, 0.72],
}
MATRIX = {
    "student": ["stem+layer1", "layer2"],
    "teacher": ["stem", "layer1", "layer2"],
    "clips": 256,
    "before": [[0.11, 0.12, 0.13], [0.21, 0.22, 0.23]],
    "after": [[0.81, 0.32, 0.33], [0.41, 0.42, 0.93]],
}
FLOPS = {"teach": 5 * 10**15, "distill": 1_500 * 10**9}


def _publish(
    plans: Plans, store: Store, top1: Callable[[Mapping[str, str], str], float], flops: Mapping[str, int]
) -> None:
    """Artifacts that look like trained ones, for every stage that is not there."""
    for cell, plan in plans.cells.items():
        for stage in plan.stages:
            if store.state(stage) != "hit":
                with store.held(stage, lambda: None) as lease:
                    space = store.open(stage, lease)
                    metrics = _metrics(stage, plans.labels[cell], top1, flops)
                    if stage.name == "data":
                        facts = {
                            "classes": ["a", "b"],
                            "clips": {"train": 8, "val": 200, "test": 4},
                            "leaks": [],
                            "bad_files": [],
                        }
                        (space.files / "data.json").write_text(json.dumps(facts), "utf-8")
                    if stage.name == "student":
                        (space.files / "student.safetensors").write_bytes(b"weights")
                        (space.files / "correlation.json").write_text(json.dumps(MATRIX), "utf-8")
                    manifest = manifest_of(plan, stage).model_copy(update={"metrics": metrics})
                    store.publish(stage, space, manifest, {"device": "cpu", "threads": 1, "seconds": 1.0}, lease)


def _metrics(
    stage: Stage, labels: Mapping[str, str], top1: Callable[[Mapping[str, str], str], float], flops: Mapping[str, int]
) -> dict[str, Any]:
    match stage.work.kind:
        case "weaken":
            return {"labels": {"clean": 4, "noisy": 2, "none": 2}, "labels_right": 0.8}
        case "teach" | "distill":
            counted = {"train_flops": flops[stage.work.kind]} if stage.work.kind in flops else {}
            return {"steps": 30, "labels": "same", "labelled_clips": 6, "clips": 8} | counted
        case "evaluate":
            return {
                "top1": top1(labels, stage.name.removeprefix("evaluate-")),
                "clips": 200,
                "ece": 0.1,
                "split": "val",
                "per_class": {"a": 0.5, "b": 0.6},
                "params": 100,
                "flops": 1000,
                "views": "1x1",
            }
        case _:
            return {}


def _top1(labels: Mapping[str, str], network: str) -> float:
    return TOPS[labels["recipe"], labels["train.lr"]][int(labels["seed"])] if network == "student" else 0.9


def compare_with(settings: Mapping[str, Scores], base: str, *more: Any, **named: Any) -> dict[str, Comparison]:
    """Compare all other settings with one."""
    return compare({name: (own, settings[base]) for name, own in settings.items() if name != base}, *more, **named)


def make_grid(folder: Path, text: str = GRID, flops: Mapping[str, int] = FLOPS) -> tuple[Plans, Store]:
    (folder / "specs").mkdir(exist_ok=True)
    for name, content in (("tiny", TINY), ("staged", STAGED), ("grid", text)):
        (folder / "specs" / f"{name}.yaml").write_text(content, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu}\n", "utf-8")
    plans, store = compile_experiment(load_experiment(folder / "specs" / "grid.yaml")), Store(folder / "store")
    _publish(plans, store, _top1, flops)
    return plans, store


def plain(html: str) -> str:
    """A page without the attributes of its cells."""
    return re.sub(r"<(t[dhr]) [^>]*>", r"<\1>", html)


# Experiments

MOTIONS = ("right", "left", "down", "up", "orbit_cw", "orbit_ccw", "spin_cw", "spin_ccw")
LONG = tuple(f"{i}_" + ("Pouring_something_into_something_until_it_overflows_" * 2)[: 20 + i] for i in range(40))
ROUND = Refinement("refine-1", 1, "accepted", 0.6, 0.7, 0.5, 0.9, 0.04, 1.2, 120, 31, {}, 5)


def answers(classes: int, clips: int, right: float, seed: int) -> Predictions:
    """Answers of a made-up network that is right that often."""
    dice = random.Random(seed)
    labels = [i % classes for i in range(clips)]
    predicted = [c if dice.random() < right else dice.randrange(classes) for c in labels]
    return Predictions(range(clips), labels, predicted, [dice.uniform(1 / classes, 1) for _ in labels])


def network(like: NetworkResult, name: str, classes: Sequence[str], given: Predictions, **more: Any) -> NetworkResult:
    hits = [given.label[i] == given.predicted[i] for i in range(len(given.clip))]
    of = {c: [hit for hit, label in zip(hits, given.label, strict=True) if label == i] for i, c in enumerate(classes)}
    top1 = sum(hits) / len(hits)
    shown = {"per_class": {c: sum(rows) / len(rows) for c, rows in of.items() if rows}, "classes": len(classes)}
    values = {"top1": top1, "interval": wilson(sum(hits), len(hits)), "ece": 0.1, "latency": 0.0021, "dead": 0.01}
    return replace(like, name=name, **{**values, **shown, **more})


def events(losses: Sequence[str], epochs: int) -> list[Mapping[str, Any]]:
    """Events of a training in two phases."""
    return [
        {
            "event": "epoch",
            "phase": "grow.1" if epoch < 3 else "joint",
            "losses": {name: 2.0 / (epoch + i + 1) for i, name in enumerate(losses)} | {"total": 3.0 / (epoch + 1)},
            "terms": {name: {"mean": 1.0, "share": 1 / len(losses)} for name in losses},
        }
        for epoch in range(epochs)
    ]


def mistake(i: int, classes: Sequence[str]) -> Mistake:
    frames = [Image.new("RGB", (96, 72), (20 * i, 30 * k, 120)) for k in range(8)]
    picture = base64.b64encode(strip(frames, 60)).decode("ascii")
    path = f"videos/{classes[i % len(classes)]}/{'very_long_name_' * (i % 3)}{i:04}.mp4"
    names = classes[i % len(classes)], classes[(i + 1) % len(classes)]
    return Mistake(path, *names, 0.99 - i / 50, 8, (72, 96), picture)


def full(results: Results, classes: Sequence[str] = MOTIONS) -> tuple[Results, Evidence]:
    """An experiment with everything that a page can show, and its evidence."""
    names = {"teacher": 0.95, "assistant-1": 0.9, "student": 0.8, "control-ce": 0.6}
    given = {name: answers(len(classes), 400, right, i) for i, (name, right) in enumerate(names.items())}
    made = {name: network(results.student, name, classes, given[name]) for name in names}
    blocks = tuple(f"stem+layer{i}" for i in range(1, 4))
    values = tuple(tuple(0.1 * (k + m + 1) for m in range(3)) for k in range(3))
    mixture = [[1.0, None, None], [0.0, 0.4, None], [None, 0.6, 1.0]]
    mixtures = tuple({"phase": "grow.1" if e < 3 else "joint", "epoch": e, "shares": mixture} for e in range(12))
    steps = range(1, 13)
    found = replace(
        results,
        teacher=replace(made["teacher"], params=226_232),
        assistants=(made["assistant-1"],),
        student=made["student"],
        control=made["control-ce"],
        data={**results.data, "classes": list(classes), "clips": {"train": 1200, "val": 400, "test": 400}},
        curves={"teacher": events(["ce"], 12), "student": events(["ce", "kd", "gaussian_w2", "hint", "sp"], 12)},
        correlations={"student": Correlation(blocks, blocks, values, values, 256, mixtures)},
        refinements=(replace(ROUND, recall=dict.fromkeys(classes, 0.5)),),
        loss_shares=(LossShares("student", "joint", {"ce": 0.1, "kd": 0.7, "gaussian_w2": 0.2}),),
        validation={
            n: tuple(Validation("joint", s, 38 * s, 0.5 + (s % 9) / 20, 1 / s, 400) for s in steps) for n in names
        },
    )
    counted = Counter({(i, origin): 15 for i in range(len(classes)) for origin in ("clean", "noisy")})
    stages = tuple(StageFacts(s.name, "", s.folder, 75.0, "2026-01-02 03:04", "a CPU") for s in results.plan.stages)
    mistakes = tuple(mistake(i, classes) for i in range(10))
    return found, Evidence(given, mistakes, counted, stages, {"stagedkd": "0.1", "torch": "2.15"}, "0" * 40)


def bare(results: Results) -> tuple[Results, Evidence]:
    """No control, no cascade, no evidence, and a teacher of unknown accuracy and size."""
    unknown = replace(
        results.teacher, top1=math.nan, interval=(math.nan, math.nan), ece=math.nan, per_class={}, params=0
    )
    student = replace(results.student, interval=wilson(120, 200))
    return replace(results, teacher=unknown, assistants=(), student=student, control=None, correlations={}), Evidence()


def bench_of(runtimes: int) -> Bench:
    rows = [
        Timing(
            runtime=f"openvino-int8-{i}",
            median=0.01,
            p95=0.02,
            spread=0.5,
            throughput=90.0,
            batch=8,
            memory=10**8,
            bytes=9**7,
        )
        for i in range(runtimes)
    ]
    return Bench(weights="a" * 64, threads=2, machine="a CPU", cores=4, load=0.5, timings=tuple(rows))


NOTES = tuple(f"note {i}: " + "a long path/" * (i % 9) + "x" * (3 * i) for i in range(200))
FILES = [Path(name) for name in ("README.md", "student.safetensors", "demo", "export/onnx", "export/openvino-int8")]


def experiments(results: Results) -> dict[str, str]:
    """Pages of experiments, by a word on what is awkward about them."""
    everything, evidence = full(results)
    many, seen = full(results, LONG)
    one, single = full(results, ["only"])
    unknown = replace(everything, refinements=(replace(ROUND, before=None, after=None, precision=None),))
    plain_teacher, nothing = bare(results)
    return {
        "everything": experiment_page(everything, evidence, NOTES[:3], bench_of(4), FILES).text,
        "many long classes": experiment_page(many, seen, NOTES, bench_of(2), FILES).text,
        "one class": experiment_page(one, single).text,
        "no truth, no control": experiment_page(replace(unknown, control=None), evidence).text,
        "a headless teacher alone": experiment_page(plain_teacher, nothing).text,
    }


def grids(grid: GridResults) -> dict[str, str]:
    """Pages of grids, by a word on what is awkward about them."""
    costly = {
        name: replace(cell, student=replace(cell.student, latency=0.001 * (1 + i % 5), params=100 * (1 + i % 3)))
        for i, (name, cell) in enumerate(grid.cells.items())
    }
    pages = {name: f"../{name}/report.html" for name in list(grid.cells)[:3]}
    fewer = dict(list(grid.cells.items())[7:])
    missing = {name: "it has not run: " + "store/distill-" * 9 for name in grid.plans.cells if name not in fewer}
    return {
        "settings": grid_page(replace(grid, cells=costly), "a look", pages, [Path("cells.csv")]).text,
        "no baseline": grid_page(GridResults(grid.plans, fewer, missing, grid.baseline), "").text,
    }
