"""Give the training clips their labels: clean, noisy or none."""

from __future__ import annotations

import json

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
    """Write labels.parquet: for each training clip the label it is given (-1: none) and where that comes from."""
    data = context.inputs["data"]
    clips, truth = read_table(data.file("clips.parquet")), read_table(data.file("truth.parquet"))["label"]
    classes: list[str] = json.loads(data.file("data.json").read_text("utf-8"))["classes"]
    train = [i for i, split in enumerate(clips["split"]) if split == "train"]
    true = np.array([truth[i] for i in train], np.int64)
    trusted = np.array([clips["trusted"][i] for i in train], np.bool_)
    looks = _looks(context, work.clip, train) if work.clip else None
    drawn = Clips(true, trusted, [clips["group"][i] for i in train], looks)
    given, origin = weaken_labels(drawn, work.labels, classes)
    write_table(context.workspace.files / "labels.parquet", {"clip": train, "label": given.tolist(), "origin": origin})
    if not (given >= 0).any() and work.labels.clean + work.labels.noisy > 0:
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    judged = (given >= 0) & (true >= 0) & trusted  # nobody knows the truth of labels that came noisy
    right = float((given == true)[judged].mean()) if judged.any() else None
    return Result(metrics={"labels": label_counts(origin), "labels_right": right})


def _looks(context: Context, clip: Clip, numbers: list[int]) -> npt.NDArray[np.float64]:
    """What clips look like: grey means and deviations in time of an 8 x 8 grid, (N, 128)."""
    import torch

    from stagedkd.stages.clips import open_source

    source = open_source(context, context.inputs["data"], clip, torch.device("cpu"))
    rows: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(numbers), 32):
        context.stop.check()
        (view_B3THW,) = source.views(numbers[start : start + 32], 1, 1)
        grid_BTHW = torch.nn.functional.adaptive_avg_pool2d(view_B3THW.mean(1), 8)
        found = torch.cat([grid_BTHW.mean(1).flatten(1), grid_BTHW.std(1, correction=0).flatten(1)], 1)
        rows.append(found.double().numpy())
        context.listener.count("clips looked at", min(start + 32, len(numbers)), len(numbers))
    return np.concatenate(rows)
