"""Evaluate one network on one split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stagedkd.data.source import ClipSource
from stagedkd.data.views import fit_input
from stagedkd.errors import DataError
from stagedkd.models.network import Network
from stagedkd.models.quantise import quantisers
from stagedkd.models.shapes import measure
from stagedkd.plan.work import DistillWork, EvaluateWork
from stagedkd.spec.schema import OutputsArch
from stagedkd.stages.clips import clips_of_split, open_source
from stagedkd.stages.context import Context, Result
from stagedkd.stages.loggers import log_result
from stagedkd.stages.mistakes import write_mistakes
from stagedkd.stages.networks import build_or_refuse, device_of, load_network
from stagedkd.stages.outputs import load_outputs
from stagedkd.stages.tables import read_table, write_table
from stagedkd.stages.training import on_device, run_facts
from stagedkd.store.store import Artifact
from stagedkd.train.dead import CLIPS, dead_share
from stagedkd.train.evaluate import latency, metrics_of, predict

if TYPE_CHECKING:
    import torch


def evaluate(context: Context, work: EvaluateWork) -> Result:
    """Write predictions.parquet and mistakes.json, and compute the metrics. The latency and the share of dead channels
    go into run.json.

    Raises:
        DataError: the split has no clips.
    """
    import torch

    torch.set_num_threads(context.runtime.used_threads)
    data, device = context.inputs["data"], device_of(context.runtime.device)
    classes: list[str] = data.json("data.json")["classes"]
    clip_ids, labels = clips_of_split(data, work.split)
    if not len(clip_ids):
        raise DataError(f"split '{work.split}' has no clips", hint="evaluate another split, or set data.test_folds")
    if isinstance(work.arch, OutputsArch):
        return _evaluate_outputs(context, work, work.arch, clip_ids, labels, classes)
    if reason := context.inputs["network"].manifest.metrics.get("headless"):
        context.listener.note(f"{context.stage.name}: it has no head for the classes ({reason}), so no accuracy")
        shape = measure(lambda: build_or_refuse(work.arch, len(classes), context.root), *work.clip.seen(work.input))
        facts = {"split": work.split, "views": "1x1", "params": shape.params, "flops": shape.flops, "clips": 0}
        return Result(metrics=facts, run=run_facts(device, 0.0))
    network = on_device(load_network(context.inputs["network"], work.arch, len(classes), context.root), device)

    def progress(done: int, of: int) -> None:
        context.stop.check()
        context.listener.count("clips evaluated", done, of)

    source = open_source(context, data, work.clip, device)
    rehearsal = context.rehearsal()
    views = (work.clips, work.crops, work.input)
    scores = predict(network, source, clip_ids, work.batch, *views, progress, rehearsal, work.frames)
    _write_predictions(context, clip_ids, labels, scores)
    if rehearsal is None:
        paths = read_table(data.read("clips.parquet"), "path")["path"]
        write_mistakes(context.workspace.files, source, paths, clip_ids, labels, scores, classes, work.frames)
    view = work.clip.seen(work.input)
    shape = measure(lambda: build_or_refuse(work.arch, len(classes), context.root), *view)
    metrics = metrics_of(scores, labels, classes)
    metrics |= {
        "split": work.split,
        "views": f"{work.clips}x{work.crops}",
        "params": shape.params,
        "flops": shape.flops,
    }
    facts = run_facts(device, 0.0) | _latency(context, network, device)
    val_ids = clip_ids if work.split == "val" else clips_of_split(data, "val")[0]
    facts["dead_channels"] = _dead_channels(context, work, network, source, val_ids[:CLIPS].tolist())
    log_result(context, metrics)
    return Result(metrics=metrics, run=facts)


def _dead_channels(
    context: Context, work: EvaluateWork, network: Network, source: ClipSource, clip_ids: list[int]
) -> float | None:
    """Measure the share of dead channels at the ends of the network's substages."""
    batches = [clip_ids[i : i + work.batch] for i in range(0, len(clip_ids), work.batch)]
    fitted = (fit_input(source.views(ids, 1, 1)[0], work.input) for ids in batches)
    return dead_share(network, fitted, ends_of(context.inputs["network"], network))


def _latency(context: Context, network: Network, device: torch.device) -> dict[str, float | None]:
    """Measure the latency for run.json; None, with a note, if the machine was too busy to tell."""
    work = context.stage.work
    assert isinstance(work, EvaluateWork)
    if quantisers(network):
        text = "its latency is left out: torch imitates int8, and an export computes in it"
        context.listener.note(f"{context.stage.name}: {text}; stagedkd bench measures exports")
        return {"latency_seconds": None, "latency_spread": None}
    seconds, spread = latency(network, *work.clip.seen(work.input), device)
    if seconds is None:
        text = f"its latency is left out: it varied by {spread:.0%}, so the machine was busy"
        context.listener.note(f"{context.stage.name}: {text}; stagedkd bench measures it")
    return {"latency_seconds": seconds, "latency_spread": spread}


def _write_predictions(
    context: Context,
    clip_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
) -> None:
    """Write predictions.parquet from class probabilities (n, N)."""
    columns = {
        "clip": clip_ids.tolist(),
        "label": labels.tolist(),
        "predicted": scores.argmax(1).tolist(),
        "confidence": scores.max(1).tolist(),
    }
    write_table(context.workspace.files / "predictions.parquet", columns)


def _evaluate_outputs(
    context: Context,
    work: EvaluateWork,
    arch: OutputsArch,
    clip_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    classes: list[str],
) -> Result:
    """Measure outputs from a file, if it has scores of the classes for each clip of the split; else there is no
    accuracy."""
    import torch

    outputs = load_outputs(context.inputs["network"])
    facts = {"split": work.split, "views": "1x1", "params": arch.params or 0, "flops": 0}
    run = run_facts(torch.device("cpu"), 0.0)
    missing = sum(clip not in outputs for clip in clip_ids.tolist())
    if missing or arch.embeds:
        lacking = f"lacks {missing} of {len(clip_ids)} clips of the {work.split} split"
        where = f"{arch.outputs} {'has embeddings' if arch.embeds else lacking}"
        context.listener.note(f"{context.stage.name}: {where}, so its accuracy is unknown")
        return Result(metrics={**facts, "clips": 0}, run=run)
    logits = np.stack([outputs[clip] for clip in clip_ids.tolist()])
    unnormalised = np.exp(logits - logits.max(1, keepdims=True))
    scores = unnormalised / unnormalised.sum(1, keepdims=True)
    _write_predictions(context, clip_ids, labels, scores)
    return Result(metrics=metrics_of(scores, labels, classes) | facts, run=run)


def ends_of(artifact: Artifact, network: Network) -> tuple[str, ...]:
    """Return the blocks at the ends of a distilled network's substages; all blocks of any other network."""
    work = artifact.manifest.work
    return tuple(substage[-1] for substage in work.cut) if isinstance(work, DistillWork) else network.blocks
