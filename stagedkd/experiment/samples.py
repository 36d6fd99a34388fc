"""A few training clips of each class, plain and augmented, for `stagedkd data preview`."""

from __future__ import annotations

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
    """Load the first `count` training clips of each class, by class name. Classes without training clips are left
    out."""
    classes: list[str] = data.json("data.json")["classes"]
    truth = read_table(data.read("truth.parquet"))["label"]
    table = read_table(labels.read("labels.parquet"))
    work = next(s.work for s in session.plan.stages if isinstance(s.work, DistillWork))
    source = open_source(session, data, work.clip, CPU)
    rows = zip(table["clip"], table["label"], table["origin"], strict=True)
    captions = {clip_id: _caption(label, origin, classes) for clip_id, label, origin in rows}
    clips: dict[str, list[PreviewClip]] = {}
    for i, name in enumerate(classes):
        clip_ids = [clip_id for clip_id in table["clip"] if truth[clip_id] == i][:count]
        if not clip_ids:
            continue
        (plain,) = source.views(clip_ids, 1, 1)
        views = [source.train_view(clip_id, work.augment, work.seed, 0) for clip_id in clip_ids]
        augmented = source.finish(clip_ids, views, source.load(clip_ids, views))
        pairs = zip(clip_ids, plain, augmented, strict=True)
        clips[name] = [PreviewClip(name, captions[n], _pixels(first), _pixels(second)) for n, first, second in pairs]
    return clips


def _caption(label: int, origin: str, classes: list[str]) -> str:
    """The line below a clip: its given label and the origin of that label."""
    return "no label" if label < 0 else f"label: {classes[label]} ({origin})"


def _pixels(view_3THW: Tensor) -> np.ndarray:
    """The frames of a view in 0..1 as uint8, (T, H, W, 3)."""
    return (view_3THW.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
