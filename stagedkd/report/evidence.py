"""What the page of an experiment shows beside its results: the answers to each clip, wrong clips, clips of each class,
and how the stages went. Tables and terminal do without, so this is read for the page alone.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stagedkd.plan.graph import Plan
from stagedkd.report.statistics import paired_clips
from stagedkd.stages.mistakes import FILE
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Artifact, Store

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Predictions:
    """The answers of a network to the evaluated clips: for each clip its id, its class, the predicted class, and the
    probability of that in 0..1. Classes are numbers."""

    clip: Sequence[int]
    label: Sequence[int]
    predicted: Sequence[int]
    confidence: Sequence[float]

    @property
    def right(self) -> dict[int, bool]:
        """Whether each clip is right, by its id."""
        return {c: a == b for c, a, b in zip(self.clip, self.label, self.predicted, strict=True)}

    @property
    def confusions(self) -> Counter[tuple[int, int]]:
        """The number of clips of each class, and of each class that they were taken for."""
        return Counter(zip(self.label, self.predicted, strict=True))


@dataclass(frozen=True)
class Difference:
    """The accuracy of a network minus that of another on the same `clips` clips, in -1..1, with its 95% interval."""

    mean: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True)
class Mistake:
    """A wrong clip: its path as the data set lists it, class, predicted class, the probability of that, and a picture
    of its frames side by side (WebP, base64). `size` is height and width of a frame in pixels."""

    path: str
    label: str
    predicted: str
    confidence: float
    frames: int
    size: tuple[int, int]
    picture: str


@dataclass(frozen=True)
class StageFacts:
    """How a stage went. `seconds` and `date` (UTC) are None and "" where run.json is missing."""

    name: str
    kind: str
    folder: str
    seconds: float | None
    date: str
    device: str


@dataclass(frozen=True)
class Evidence:
    """What a page shows beside the results. All of it may be absent.

    `predictions` are by network; `given` counts the training clips by their given class (a number) and the origin of
    their label, clean or noisy. `versions` are those of the student's training, and `commit` that of the project now.
    """

    predictions: Mapping[str, Predictions] = field(default_factory=dict[str, Predictions])
    mistakes: tuple[Mistake, ...] = ()
    given: Mapping[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    stages: tuple[StageFacts, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    commit: str = ""

    def difference(self, network: str, other: str) -> Difference | None:
        """Compare two networks on the clips that both have answered; None where there are none."""
        if network not in self.predictions or other not in self.predictions:
            return None
        own, theirs = self.predictions[network].right, self.predictions[other].right
        clips = own.keys() & theirs.keys()
        if not clips:
            return None
        first = sum(own[clip] and not theirs[clip] for clip in clips)
        second = sum(theirs[clip] and not own[clip] for clip in clips)
        return Difference(*paired_clips(first, second, len(clips)), clips=len(clips))


def read_evidence(plan: Plan, store: Store, root: Path) -> Evidence:
    """Read the evidence of a plan that has run. Artifacts of earlier versions may lack some of it.

    Args:
        root: the project's folder.
    Raises:
        StoreError: a stage is missing from the store, or damaged.
    """
    artifacts = {stage.name: store.artifact(stage) for stage in plan.stages}
    evaluations = {s.needs["network"]: artifacts[s.name] for s in plan.of_role("evaluate")}
    read = {name: read_predictions(artifact) for name, artifact in evaluations.items()}
    labels = artifacts["labels"]
    rows = read_table(labels.read("labels.parquet")) if "labels.parquet" in labels.manifest.files else {}
    given = [(c, o) for c, o in zip(rows.get("label", ()), rows.get("origin", ()), strict=True) if c >= 0]
    return Evidence(
        {name: predictions for name, predictions in read.items() if predictions is not None},
        read_mistakes(evaluations["student"]),
        Counter(given),
        tuple(_stage_facts(stage.name, artifacts[stage.name]) for stage in plan.stages),
        _versions(artifacts["student"].run or {}),
        commit_of(root),
    )


def read_predictions(evaluation: Artifact) -> Predictions | None:
    """Read the answers of a network; None where they are not kept."""
    if PREDICTIONS not in evaluation.manifest.files:
        return None
    return Predictions(**read_table(evaluation.read(PREDICTIONS), "clip", "label", "predicted", "confidence"))


def read_mistakes(evaluation: Artifact) -> tuple[Mistake, ...]:
    """Read the wrong clips with their pictures; none where they are not kept."""
    if FILE not in evaluation.manifest.files:
        return ()
    rows = evaluation.json(FILE)["clips"]
    return tuple(
        Mistake(
            row["path"],
            row["label"],
            row["predicted"],
            row["confidence"],
            row["frames"],
            (row["size"][0], row["size"][1]),
            row["picture"],
        )
        for row in rows
    )


def bare_stages(plan: Plan) -> tuple[StageFacts, ...]:
    """The stages of a plan of which no more is known."""
    return tuple(StageFacts(stage.name, stage.work.kind, stage.folder, None, "", "") for stage in plan.stages)


def _stage_facts(name: str, artifact: Artifact) -> StageFacts:
    run = artifact.run or {}
    date = datetime.fromtimestamp(run["started"], UTC).strftime("%Y-%m-%d %H:%M") if "started" in run else ""
    device = str(run.get("device_name") or run.get("device") or "")
    return StageFacts(name, artifact.manifest.kind, artifact.manifest.folder, run.get("seconds"), date, device)


def _versions(run: Mapping[str, Any]) -> dict[str, str]:
    """The versions and the machine of run.json, by what they are of."""
    words = {"stagedkd": "stagedkd", "code": "its source", "python": "Python", "machine": "system", "cpu": "CPU"}
    found = {word: str(run[name]) for name, word in words.items() if run.get(name)}
    return found | {name: str(version) for name, version in run.get("packages", {}).items()}


def commit_of(root: Path) -> str:
    """Return the commit of a folder in a git repository, with a word if files differ from it; "" if there is none."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        return found.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    changed = commit and ask("status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes that are not committed" if changed else commit
