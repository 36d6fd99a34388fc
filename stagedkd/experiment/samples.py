"""A few training clips of each class, as they are and augmented, for people to look at."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from stagedkd.data.preview import PreviewClip
from stagedkd.plan.work import DistillWork
from stagedkd.stages.clips import open_source
from stagedkd.stages.context import Session
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Artifact

CPU = torch.device("cpu")


def samples(session: Session, data: Artifact, labels: Artifact, count: int) -> dict[str, list[PreviewClip]]:
    """`count` clips of each class, by class in the order of their ids; those without any are left out."""
    classes: list[str] = json.loads(data.file("data.json").read_text("utf-8"))["classes"]
    truth = read_table(data.file("truth.parquet"))["label"]
    given = read_table(labels.file("labels.parquet"))
    work = next(s.work for s in session.plan.stages if isinstance(s.work, DistillWork))
    source = open_source(session, data, work.clip, CPU)
    rows = zip(given["clip"], given["label"], given["origin"], strict=True)
    said = {number: _told(label, origin, classes) for number, label, origin in rows}
    found: dict[str, list[PreviewClip]] = {}
    for i, name in enumerate(classes):
        numbers = [n for n in given["clip"] if truth[n] == i][:count]
        if not numbers:
            continue
        (plain,) = source.views(numbers, 1, 1)
        views = [source.train_view(n, work.augment, work.seed, 0) for n in numbers]
        augmented = source.finish(numbers, views, source.load(numbers, views))
        pictures = zip(numbers, plain, augmented, strict=True)
        found[name] = [PreviewClip(name, said[n], _pixels(first), _pixels(second)) for n, first, second in pictures]
    return found


def _told(label: int, origin: str, classes: list[str]) -> str:
    return "no label" if label < 0 else f"label: {classes[label]} ({origin})"


def _pixels(view_3THW: Tensor) -> np.ndarray:
    return (view_3THW.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
