"""Give the training clips their labels: clean, noisy or none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stagedkd.data.labels import Clips, label_counts
from stagedkd.data.labels import weaken as weaken_labels
from stagedkd.errors import DataError
from stagedkd.plan.work import WeakenWork
from stagedkd.spec.schema import Clip
from stagedkd.stages.context import Context, Result
from stagedkd.stages.tables import read_table, write_table


def weaken(context: Context, work: WeakenWork) -> Result:
    """Write labels.parquet: the given label of each training clip (-1: none) and the origin of that label."""
    data = context.inputs["data"]
    clips, truth = (
        read_table(data.read("clips.parquet"), "split", "trusted", "group"),
        read_table(data.read("truth.parquet"))["label"],
    )
    classes: list[str] = data.json("data.json")["classes"]
    train = [i for i, split in enumerate(clips["split"]) if split == "train"]
    true = np.array([truth[i] for i in train], np.int64)
    trusted = np.array([clips["trusted"][i] for i in train], np.bool_)
    appearance = _appearance(context, work.clip, train) if work.clip else None
    train_clips = Clips(true, trusted, [clips["group"][i] for i in train], appearance)
    given, origin = weaken_labels(train_clips, work.labels, classes)
    write_table(context.workspace.files / "labels.parquet", {"clip": train, "label": given.tolist(), "origin": origin})
    if not (given >= 0).any() and work.labels.clean + work.labels.noisy > 0:
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    checkable = (given >= 0) & (true >= 0) & trusted  # the true label of a clip that came with a noisy one is unknown
    right = float((given == true)[checkable].mean()) if checkable.any() else None
    return Result(metrics={"labels": label_counts(origin), "labels_right": right})


def _appearance(context: Context, clip: Clip, clip_ids: list[int]) -> npt.NDArray[np.float64]:
    """Describe the appearance of clips, (N, 128): mean and standard deviation over time of the grey values on an 8 x 8
    grid."""
    import torch

    from stagedkd.stages.clips import open_source

    source = open_source(context, context.inputs["data"], clip, torch.device("cpu"))
    rows: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(clip_ids), 32):
        context.stop.check()
        (view_B3THW,) = source.views(clip_ids[start : start + 32], 1, 1)
        grid_BTHW = torch.nn.functional.adaptive_avg_pool2d(view_B3THW.mean(1), 8)
        features = torch.cat([grid_BTHW.mean(1).flatten(1), grid_BTHW.std(1, correction=0).flatten(1)], 1)
        rows.append(features.double().numpy())
        context.listener.count("clips inspected", min(start + 32, len(clip_ids)), len(clip_ids))
    return np.concatenate(rows)
