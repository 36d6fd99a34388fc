"""Read the results of a plan from the store: manifests, run.json and event files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from stagedkd.plan.graph import Plan, Role, Stage
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.report.results import Correlation, LossShares, NetworkResult, Refinement, Results, Validation
from stagedkd.report.statistics import wilson
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Artifact, Store


def collect(plan: Plan, store: Store) -> Results:
    """Read the results of a plan that has run.

    Raises:
        StoreError: a stage is missing from the store.
    """
    artifacts = {stage.name: store.artifact(stage) for stage in plan.stages}
    evaluations = {s.needs["network"]: artifacts[s.name] for s in plan.of_role("evaluate")}
    trained = [s for s in plan.stages if s.work.network]
    count = len(artifacts["data"].json("data.json")["classes"])
    networks = {s.name: _network_result(s, artifacts[s.name], evaluations[s.name], count) for s in trained}

    def of_role(role: Role) -> tuple[NetworkResult, ...]:
        return tuple(networks[s.name] for s in plan.of_role(role))

    (teacher,), (student,) = of_role("teacher"), of_role("student")
    evaluation = evaluations[student.name].manifest.metrics
    return Results(
        plan=plan,
        teacher=teacher,
        assistants=of_role("assistant"),
        student=student,
        co_teachers=of_role("co_teacher"),
        control=next(iter(of_role("control")), None),
        split=evaluation["split"],
        views=evaluation["views"],
        data=artifacts["data"].json("data.json"),
        data_notes=tuple((artifacts["data"].run or {}).get("data_notes", ())),
        labels=dict(artifacts["labels"].manifest.metrics["labels"]),
        labels_right=artifacts["labels"].manifest.metrics.get("labels_right"),
        curves={s.name: epoch_events(artifacts[s.name]) for s in trained},
        damage=tuple(line for artifact in artifacts.values() for line in artifact.log.damage),
        not_logged=tuple(
            f"{tool} lacks the training of {s.name}, or a part of it: {error}"
            for s in trained
            for tool, error in (artifacts[s.name].run or {}).get("not_logged", {}).items()
        ),
        without_run=tuple(name for name, each in artifacts.items() if each.run is None and not each.log.damage),
        device=_device(artifacts[student.name].run or {}),
        correlations=read_correlations({s.name: artifacts[s.name] for s in trained}),
        refinements=read_refinements(plan, artifacts),
        loss_shares=read_loss_shares({s.name: artifacts[s.name] for s in trained}),
        validation={s.name: read for s in trained if (read := validation_events(artifacts[s.name]))},
    )


def _device(run: Mapping[str, Any]) -> str:
    name = run.get("device_name") or run.get("device")
    return f"{name}, {run.get('threads', 'unknown')} threads" if name else "Device unknown"


def _network_result(stage: Stage, training: Artifact, evaluation: Artifact, classes: int) -> NetworkResult:
    trained, evaluated = training.manifest.metrics, evaluation.manifest.metrics
    work = stage.work
    assert isinstance(work, (TeachWork, DistillWork))
    declared = work.declared if isinstance(work, TeachWork) else None
    clips = int(evaluated["clips"])
    return NetworkResult(
        name=stage.name,
        arch=work.arch.title,
        top1=evaluated.get("top1", math.nan),
        interval=wilson(round(evaluated["top1"] * clips), clips) if "top1" in evaluated else (math.nan, math.nan),
        top5=evaluated.get("top5"),
        ece=evaluated.get("ece", math.nan),
        per_class=dict(evaluated.get("per_class", {})),
        classes=classes,
        params=evaluated["params"],
        flops=evaluated["flops"],
        labels=trained["labels"] if work.trainings else "none",
        weights=work.weights.name if work.weights else work.arch.pretrained_from,
        declared=declared.title if declared else "",
        commonest=_commonest(evaluation),
        labelled_clips=trained.get("labelled_clips", 0),
        training_clips=trained.get("clips", 0),
        clips_of=trained.get("clips_of"),
        steps=trained["steps"],
        train_flops=trained.get("train_flops"),
        seconds=(training.run or {}).get("seconds"),
        latency=(evaluation.run or {}).get("latency_seconds"),
        dead=(evaluation.run or {}).get("dead_channels"),
        size=_size(training),
        key=training.manifest.key,
    )


def _size(training: Artifact) -> int | None:
    """Return the bytes of the weight file of a network; None where it has none, such as outputs from a file."""
    path = training.folder / "files" / (training.manifest.work.network_file or "")
    return path.stat().st_size if path.is_file() else None


def _commonest(evaluation: Artifact) -> float | None:
    """Return the share of the commonest class among the clips of an evaluation; None where it is not kept."""
    if "predictions.parquet" not in evaluation.manifest.files:
        return None
    labels = read_table(evaluation.read("predictions.parquet"), "label")["label"]
    return max(Counter(labels).values()) / len(labels) if labels else None


def read_correlations(trained: Mapping[str, Artifact]) -> dict[str, Correlation]:
    """Read the correlations that hops have measured, by the name of the stage. Stages may lack the file."""
    correlations: dict[str, Correlation] = {}
    for name, artifact in trained.items():
        if "correlation.json" in artifact.manifest.files:
            read = artifact.json("correlation.json")
            before, after = (tuple(tuple(map(float, row)) for row in read[when]) for when in ("before", "after"))
            student, teacher = tuple(read["student"]), tuple(read["teacher"])
            mixtures = tuple(read.get("mixtures", ()))
            correlations[name] = Correlation(student, teacher, before, after, read.get("clips"), mixtures)
    return correlations


def read_loss_shares(trained: Mapping[str, Artifact]) -> tuple[LossShares, ...]:
    """Read the shares of the losses in each phase that has several. Artifacts of earlier versions may lack them."""
    return tuple(
        LossShares(name, phase, {loss: float(term["share"]) for loss, term in terms.items()})
        for name, artifact in trained.items()
        for phase, terms in artifact.manifest.metrics.get("terms", {}).items()
        if len(terms) > 1
    )


def read_refinements(plan: Plan, artifacts: Mapping[str, Artifact]) -> tuple[Refinement, ...]:
    """Read the rounds of label refinement, in order."""
    rounds = [(s.name, artifacts[s.name].manifest.metrics) for s in plan.of_role("refine")]
    return tuple(
        Refinement(
            name,
            metrics["round"],
            metrics["outcome"],
            metrics["accuracy_before"],
            metrics["accuracy_after"],
            metrics["coverage"],
            metrics["precision"],
            metrics["ece"],
            metrics["nll"],
            metrics["wrong_to_right"],
            metrics["right_to_wrong"],
            dict(metrics["recall"]),
            metrics["train_flops"],
            tuple(metrics.get("temperatures", ())),
            metrics.get("calibrated_on"),
        )
        for name, metrics in rounds
    )


def epoch_events(artifact: Artifact) -> list[Mapping[str, Any]]:
    """The `epoch` events of a stage; none where it has no events."""
    return [e for e in artifact.log.events if e["event"] == "epoch" and isinstance(e.get("losses"), dict)]


def validation_events(artifact: Artifact) -> tuple[Validation, ...]:
    """The validations during the training of a stage, in order; none where it has no such events."""
    names = [field.name for field in fields(Validation)]
    events = (e for e in artifact.log.events if e["event"] == "validation" and all(name in e for name in names))
    return tuple(Validation(**{name: event[name] for name in names}) for event in events)
