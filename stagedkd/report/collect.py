"""Results of a plan, read from the store: manifests, run.json, event files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagedkd.plan.graph import Plan, Stage
from stagedkd.plan.work import Distill, Teach
from stagedkd.report.statistics import wilson
from stagedkd.store.store import Artifact, Store


@dataclass(frozen=True)
class NetworkResult:
    """One network of the experiment. Shares are in 0..1, `flops` 2 x multiply-adds of one clip, seconds of one clip
    for latency; None where the store lacks run.json or five classes for top5."""

    name: str
    arch: str
    top1: float
    interval: tuple[float, float]
    top5: float | None
    ece: float
    per_class: dict[str, float]
    params: int
    flops: int
    labels: str
    labelled_clips: int
    training_clips: int
    steps: int
    seconds: float | None
    latency: float | None
    key: str

    def as_json(self, teacher: NetworkResult) -> dict[str, Any]:
        """Plain values for metrics.json; `size_ratio` is the teacher's parameters over this network's."""
        values = {k: v for k, v in self.__dict__.items() if k != "interval"}
        return values | {"top1_interval95": list(self.interval), "size_ratio": teacher.params / self.params}


@dataclass(frozen=True)
class Results:
    """All networks of a plan, with what every report must say beside them."""

    plan: Plan
    teacher: NetworkResult
    assistants: tuple[NetworkResult, ...]
    student: NetworkResult
    control: NetworkResult | None
    split: str
    views: str
    data: dict[str, Any]
    labels: dict[str, int]
    labels_right: float | None
    curves: dict[str, list[dict[str, Any]]]
    without_run: tuple[str, ...]
    device: str

    @property
    def networks(self) -> tuple[NetworkResult, ...]:
        """Teacher, assistants, student and control, in this order."""
        return (self.teacher, *self.assistants, self.student, *((self.control,) if self.control else ()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know: whose labels, which split, what was skipped."""
        rows = list(self.plan.notes)
        if self.split == "test":
            rows.append("these figures are on the TEST split, as the spec asked")
        if self.plan.spec.teacher.seed != self.plan.spec.seed:
            rows.append(f"the teacher has seed {self.plan.spec.teacher.seed}, shared by every student seed")
        if self.labels.get("noisy") and self.labels_right is not None:
            rows.append(f"{self.labels_right:.1%} of the given labels are right, by the hidden truth")
        rows += [f"copies in more than one split: {' = '.join(paths)}" for paths in self.data["leaks"]]
        rows += [f"bad file {row['path']}: {row['reason']}" for row in self.data["bad_files"]]
        if self.without_run:
            rows.append(f"no run.json, so no time or device is known, of {', '.join(self.without_run)}")
        return tuple(rows)


def collect(plan: Plan, store: Store) -> Results:
    """Read the results of a plan that has run.

    Raises:
        StoreError: a stage is missing in the store.
    """
    artifacts = {stage.name: store.artifact(stage) for stage in plan.stages}
    trained = [s for s in plan.stages if isinstance(s.work, (Teach, Distill))]
    found = {s.name: _network(s, artifacts[s.name], artifacts[f"evaluate-{s.name}"]) for s in trained}
    evaluated = artifacts["evaluate-student"].manifest.metrics
    run = artifacts["student"].run or {}
    return Results(
        plan=plan,
        teacher=found["teacher"],
        assistants=tuple(found[s.name] for s in trained if s.name.startswith("assistant")),
        student=found["student"],
        control=found.get("control-ce"),
        split=evaluated["split"],
        views=evaluated["views"],
        data=json.loads(artifacts["data"].file("data.json").read_text("utf-8")),
        labels=dict(artifacts["labels"].manifest.metrics["labels"]),
        labels_right=artifacts["labels"].manifest.metrics.get("labels_right"),
        curves={s.name: read_events(artifacts[s.name].events) for s in trained},
        without_run=tuple(name for name, artifact in artifacts.items() if artifact.run is None),
        device=f"{run.get('device_name') or run['device']}, {run['threads']} threads" if run else "Device unknown",
    )


def _network(stage: Stage, trained: Artifact, evaluated: Artifact) -> NetworkResult:
    made, seen = trained.manifest.metrics, evaluated.manifest.metrics
    assert isinstance(stage.work, (Teach, Distill))
    clips = int(seen["clips"])
    return NetworkResult(
        name=stage.name, arch=describe(stage.work), top1=seen["top1"],
        interval=wilson(round(seen["top1"] * clips), clips), top5=seen.get("top5"), ece=seen["ece"],
        per_class=dict(seen["per_class"]), params=seen["params"], flops=seen["flops"], labels=made["labels"],
        labelled_clips=made.get("labelled_clips", 0), training_clips=made.get("clips", 0), steps=made["steps"],
        seconds=(trained.run or {}).get("seconds"), latency=(evaluated.run or {}).get("latency_seconds"),
        key=trained.manifest.key,
    )  # fmt: skip


def describe(work: Teach | Distill) -> str:
    """A network in a few words."""
    arch = work.arch
    if arch.arch == "resnet3d":
        return f"resnet3d w{arch.width} {'-'.join(map(str, arch.blocks))}" + (
            "" if arch.conv == "full" else f" {arch.conv}"
        )
    if arch.arch == "tsm":
        return f"tsm {arch.backbone}" + ("" if arch.shift == 0.125 else f" shift {arch.shift:g}")
    return arch.path if arch.arch == "file" else f"hf {arch.model}" if arch.arch == "hf" else arch.arch


def read_events(path: Path) -> list[dict[str, Any]]:
    """The `epoch` events of a stage; none where the file is not here."""
    if not path.is_file():
        return []
    rows: Sequence[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return [row for row in rows if row["event"] == "epoch"]
