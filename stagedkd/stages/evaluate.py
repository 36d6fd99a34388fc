"""Evaluate one network on one split."""

from __future__ import annotations

import json

import numpy as np

from stagedkd.data.views import fit_input
from stagedkd.errors import DataError
from stagedkd.models.network import Network
from stagedkd.models.shapes import measure
from stagedkd.plan.work import DistillWork, EvaluateWork
from stagedkd.stages.clips import open_source
from stagedkd.stages.context import Context, Result
from stagedkd.stages.networks import build_or_refuse, device_of, load_network
from stagedkd.stages.tables import read_table, write_table
from stagedkd.stages.training import run_facts
from stagedkd.store.store import Artifact
from stagedkd.train.dead import CLIPS, dead_share
from stagedkd.train.evaluate import latency, metrics_of, predict


def evaluate(context: Context, work: EvaluateWork) -> Result:
    """Write predictions.parquet and compute the metrics. The latency and the share of dead channels go into
    run.json.

    Raises:
        DataError: the split has no clips.
    """
    import torch

    torch.set_num_threads(context.runtime.used_threads)
    data, device = context.inputs["data"], device_of(context.runtime.device)
    classes: list[str] = json.loads(data.file("data.json").read_text("utf-8"))["classes"]
    splits = read_table(data.file("clips.parquet"))["split"]
    clip_ids = np.array([i for i, split in enumerate(splits) if split == work.split], np.int64)
    if not len(clip_ids):
        raise DataError(f"split '{work.split}' has no clips", hint="evaluate another split, or set data.test_folds")
    labels = np.array(read_table(data.file("truth.parquet"))["label"], np.int64)[clip_ids]
    network = load_network(context.inputs["network"], work.arch, len(classes), context.root).to(device)

    def progress(done: int, of: int) -> None:
        context.stop.check()
        context.listener.count("clips evaluated", done, of)

    source = open_source(context, data, work.clip, device)
    scores = predict(network, source, clip_ids, work.batch, work.clips, work.crops, work.input, progress)
    write_table(
        context.workspace.files / "predictions.parquet",
        {
            "clip": clip_ids.tolist(),
            "label": labels.tolist(),
            "predicted": scores.argmax(1).tolist(),
            "confidence": scores.max(1).tolist(),
        },
    )
    view = work.clip.seen(work.input)
    shape = measure(lambda: build_or_refuse(work.arch, len(classes), context.root), *view)
    metrics = metrics_of(scores, labels, classes)
    metrics |= {
        "split": work.split,
        "views": f"{work.clips}x{work.crops}",
        "params": shape.params,
        "flops": shape.flops,
    }
    facts = run_facts(device, 0.0) | {"latency_seconds": latency(network, *view, device)}
    val = [i for i, split in enumerate(splits) if split == "val"][:CLIPS]
    batches = [val[i : i + work.batch] for i in range(0, len(val), work.batch)]
    clips = (fit_input(source.views(ids, 1, 1)[0], work.input) for ids in batches)
    facts["dead_channels"] = dead_share(network, clips, ends_of(context.inputs["network"], network))
    return Result(metrics=metrics, run=facts)


def ends_of(artifact: Artifact, network: Network) -> tuple[str, ...]:
    """Return the blocks at the ends of a distilled network's substages; all blocks of any other network."""
    work = artifact.manifest.work
    return tuple(substage[-1] for substage in work.cut) if isinstance(work, DistillWork) else network.blocks
