"""Results of a plan, read from the store: manifests, run.json, event files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagedkd.plan.graph import Plan, Role, Stage
from stagedkd.plan.work import DistillWork, TeachWork
from stagedkd.report.statistics import wilson
from stagedkd.store.store import Artifact, Store


@dataclass(frozen=True)
class NetworkResult:
    """One network of the experiment. Shares are in 0..1, `flops` 2 x multiply-adds of one clip, seconds of one clip
    for latency; None where the store lacks run.json or five classes for top5. `train_flops` are 2 x multiply-adds of
    the whole training, forward and backward, its teacher's part included; None where the stage did not count them."""

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
    train_flops: int | None
    seconds: float | None
    latency: float | None
    key: str

    def as_json(self, teacher: NetworkResult) -> dict[str, Any]:
        """Plain values for metrics.json; `size_ratio` is the teacher's parameters over this network's."""
        values = {k: v for k, v in self.__dict__.items() if k != "interval"}
        return values | {"top1_interval95": list(self.interval), "size_ratio": teacher.params / self.params}


@dataclass(frozen=True)
class Correlation:
    """How alike the substages of a hop's two networks were `before` and `after` its training: debiased linear CKA of
    pooled features over `clips` clips, 0..1, a row for each student substage and a column for each of the teacher's."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    clips: int | None


@dataclass(frozen=True)
class Refinement:
    """One round of label refinement, measured against the hidden truth. Shares in 0..1: `before` and `after` of the
    labels are right; `coverage` of the clips have an accepted label, `precision` of these a right one; None where
    unknown. `nll` in nats."""

    name: str
    round: int
    outcome: str
    before: float | None
    after: float | None
    coverage: float
    precision: float | None
    ece: float | None
    nll: float | None
    wrong_to_right: int
    right_to_wrong: int
    recall: Mapping[str, float]
    train_flops: int

    @property
    def worst(self) -> str:
        """The class of the lowest recall, "" where none is known."""
        return min(self.recall, key=self.recall.__getitem__, default="")


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
    correlations: Mapping[str, Correlation] = field(default_factory=dict[str, Correlation])
    refinements: tuple[Refinement, ...] = ()
    co_teachers: tuple[NetworkResult, ...] = ()

    @property
    def networks(self) -> tuple[NetworkResult, ...]:
        """Teacher, co-teachers, assistants, student and control, in this order."""
        above = (self.teacher, *self.co_teachers, *self.assistants)
        return (*above, self.student, *((self.control,) if self.control else ()))

    @property
    def hops(self) -> tuple[NetworkResult, ...]:
        """What was distilled on the way to the student: assistants and student."""
        return (*self.assistants, self.student)

    @property
    def train_flops(self) -> int | None:
        """Training compute of all hops and of the refined labels, the teachers' own training apart; None where that of
        one is unknown."""
        counts = [*(network.train_flops for network in self.hops), *(made.train_flops for made in self.refinements)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

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
    evaluations = {s.needs["network"]: artifacts[s.name] for s in plan.of_role("evaluate")}
    trained = [s for s in plan.stages if s.work.network]
    found = {s.name: _network(s, artifacts[s.name], evaluations[s.name]) for s in trained}

    def of(role: Role) -> tuple[NetworkResult, ...]:
        return tuple(found[s.name] for s in plan.of_role(role))

    (teacher,), (student,) = of("teacher"), of("student")
    evaluated = evaluations[student.name].manifest.metrics
    run = artifacts[student.name].run or {}
    return Results(
        plan=plan,
        teacher=teacher,
        assistants=of("assistant"),
        student=student,
        co_teachers=of("co_teacher"),
        control=next(iter(of("control")), None),
        split=evaluated["split"],
        views=evaluated["views"],
        data=json.loads(artifacts["data"].file("data.json").read_text("utf-8")),
        labels=dict(artifacts["labels"].manifest.metrics["labels"]),
        labels_right=artifacts["labels"].manifest.metrics.get("labels_right"),
        curves={s.name: read_events(artifacts[s.name].events) for s in trained},
        without_run=tuple(name for name, artifact in artifacts.items() if artifact.run is None),
        device=f"{run.get('device_name') or run['device']}, {run['threads']} threads" if run else "Device unknown",
        correlations=read_correlations({s.name: artifacts[s.name] for s in trained}),
        refinements=read_refinements(plan, artifacts),
    )


def _network(stage: Stage, trained: Artifact, evaluated: Artifact) -> NetworkResult:
    made, seen = trained.manifest.metrics, evaluated.manifest.metrics
    assert isinstance(stage.work, (TeachWork, DistillWork))
    clips = int(seen["clips"])
    return NetworkResult(
        name=stage.name,
        arch=stage.work.arch.title,
        top1=seen["top1"],
        interval=wilson(round(seen["top1"] * clips), clips),
        top5=seen.get("top5"),
        ece=seen["ece"],
        per_class=dict(seen["per_class"]),
        params=seen["params"],
        flops=seen["flops"],
        labels=made["labels"],
        labelled_clips=made.get("labelled_clips", 0),
        training_clips=made.get("clips", 0),
        steps=made["steps"],
        train_flops=made.get("train_flops"),
        seconds=(trained.run or {}).get("seconds"),
        latency=(evaluated.run or {}).get("latency_seconds"),
        key=trained.manifest.key,
    )


def read_correlations(trained: Mapping[str, Artifact]) -> dict[str, Correlation]:
    """The correlations that hops have measured, by the name of the stage; stages may lack the file."""
    found: dict[str, Correlation] = {}
    for name, artifact in trained.items():
        if "correlation.json" in artifact.manifest.files:
            read = json.loads(artifact.file("correlation.json").read_text("utf-8"))
            before, after = (tuple(tuple(map(float, row)) for row in read[when]) for when in ("before", "after"))
            found[name] = Correlation(tuple(read["student"]), tuple(read["teacher"]), before, after, read.get("clips"))
    return found


def read_refinements(plan: Plan, artifacts: Mapping[str, Artifact]) -> tuple[Refinement, ...]:
    """The rounds of label refinement, in order."""
    rounds = [(s.name, artifacts[s.name].manifest.metrics) for s in plan.of_role("refine")]
    return tuple(
        Refinement(
            name,
            made["round"],
            made["outcome"],
            made["accuracy_before"],
            made["accuracy_after"],
            made["coverage"],
            made["precision"],
            made["ece"],
            made["nll"],
            made["wrong_to_right"],
            made["right_to_wrong"],
            dict(made["recall"]),
            made["train_flops"],
        )
        for name, made in rounds
    )


def read_events(path: Path) -> list[dict[str, Any]]:
    """The `epoch` events of a stage; none where the file is not here."""
    if not path.is_file():
        return []
    rows: Sequence[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return [row for row in rows if row["event"] == "epoch"]
