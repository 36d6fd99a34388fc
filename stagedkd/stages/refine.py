"""Refine the labels of the training clips by one round of out-of-fold predictions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import io
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data import refine as rules
from stagedkd.data.draws import Stream, bits
from stagedkd.data.labels import CLEAN
from stagedkd.data.source import ClipSource
from stagedkd.errors import DataError, TrainingError
from stagedkd.files import DamagedError, unsealed, write_sealed
from stagedkd.models.shapes import measure
from stagedkd.plan.work import RefineWork, Trainee
from stagedkd.stages.clips import open_source, workers
from stagedkd.stages.context import Context, Result
from stagedkd.stages.networks import build_or_refuse, new_network
from stagedkd.stages.tables import read_table, write_table
from stagedkd.stages.training import (
    label_job,
    naming_stage,
    order_seed,
    ranks_of,
    run_facts,
    training_device,
)
from stagedkd.train.compute import train_flops
from stagedkd.train.evaluate import expected_calibration_error, predict
from stagedkd.train.feed import Feed
from stagedkd.train.loop import fit
from stagedkd.train.phases import plan_forward

KEPT = "kept"
BATCH = 64  # clips predicted at once


@dataclass(frozen=True)
class Clips:
    """The training clips: their ids, groups, given labels and the origins of these, and the names of the classes."""

    clip_ids: npt.NDArray[np.int64]
    groups: list[str]
    given: npt.NDArray[np.int64]
    origin: list[str]
    classes: list[str]

    @property
    def clean(self) -> npt.NDArray[np.bool_]:
        """Which clips have a clean label, (n,)."""
        return np.array([origin == CLEAN for origin in self.origin], np.bool_)


def refine(context: Context, work: RefineWork) -> Result:
    """Write refined.parquet: for each training clip the labels before and after, the posterior, the networks that
    predicted it, and whether the label is accepted. A round that does not help passes on the labels of the previous
    round; its metric `outcome` says why.

    Raises:
        DataError: there is no clean label, or a fold leaves no labels to train on.
    """
    clips, previous = _clips(context), context.inputs.get("previous")
    earlier: dict[str, Any] = dict(previous.manifest.metrics) if previous else {}
    if previous:
        before = _read_labels(previous.read("refined.parquet"))
    else:
        before = rules.first_labels(clips.given, len(clips.classes))
    if earlier and earlier["outcome"] != KEPT:
        outcome = f"not run: round {earlier['last_round']} ended it"
        metrics = {name: earlier[name] for name in ("nll", "ece", "held_out", "last_round")}
        return _save_round(context, clips, work, before, before, {**metrics, "outcome": outcome, "train_flops": 0}, {})
    if not clips.clean.any():
        raise DataError("no training clip has a clean label to calibrate on", hint="raise labels.clean")
    started, device = time.monotonic(), training_device(context)
    folds = rules.deal_folds(clips.groups, clips.given, work.rule.folds, work.rule.seed)
    log_probabilities = [
        _out_of_fold(context, work, trainee, clips, before, folds, device) for trainee in work.networks
    ]
    clean, truth = clips.clean, clips.given[clips.clean]
    temperatures = [rules.calibrate(log_p[clean], truth) for log_p in log_probabilities]
    _note_bounds(context, work, temperatures)
    predicted = [rules.tempered(log_p, t) for log_p, t in zip(log_probabilities, temperatures, strict=True)]
    p = predicted[0] if len(predicted) == 1 else rules.mixture(predicted[0], predicted[1])
    right = p[clean].argmax(1) == truth
    metrics: dict[str, Any] = {
        "nll": rules.negative_log_likelihood(p[clean], truth),
        "held_out": float(right.mean()),
        "ece": expected_calibration_error(p[clean].max(1).astype(np.float32), right),
        "last_round": work.round,
        "temperatures": temperatures,
        "calibrated_on": int(clean.sum()),
        "train_flops": _flops(context, work, clips, folds),
    }
    after = rules.next_labels(work.rule, predicted, clips.given, clips.clean, before)
    metrics["outcome"] = _outcome(clips, before, after, metrics, earlier, int(right.sum()))
    if not metrics["outcome"].startswith((KEPT, "last")):
        after = before
    run = run_facts(device, time.monotonic() - started, ranks=context.ranks)
    return _save_round(context, clips, work, before, after, metrics, run)


def _note_bounds(context: Context, work: RefineWork, temperatures: list[float]) -> None:
    """Say so if a temperature is at the bound of its range."""
    for trainee, temperature in zip(work.networks, temperatures, strict=True):
        if (bound := rules.bound_hit(temperature)) is not None:
            context.listener.note(
                f"{context.stage.name}: the temperature of the {trainee.by} is at its bound {bound:g}"
            )


def _outcome(
    clips: Clips,
    before: rules.Labels,
    after: rules.Labels,
    metrics: dict[str, Any],
    earlier: dict[str, Any],
    right: int,
) -> str:
    """The outcome of a round: `kept`; `last: ...` (kept, and no round follows); or why its labels are dropped.

    Args:
        metrics: of this round. earlier: metrics of the previous round, empty for the first. right: number of clean
            clips that are predicted right out of fold.
    """
    held_out, count = metrics["held_out"], len(clips.classes)
    if rules.near_chance(right, int(clips.clean.sum()), count):
        return f"skipped: out of fold {held_out:.1%} of the clean clips are right, which is near chance"
    for name, noise in (("nll", 0.0), ("ece", rules.ECE_NOISE)):
        if earlier and metrics[name] > earlier[name] + noise:
            return f"rolled back: held-out {name.upper()} rose from {earlier[name]:.4f} to {metrics[name]:.4f}"
    shifted = ", ".join(clips.classes[c] for c in rules.shifted(before.label, after.label, count))
    if shifted:
        return f"rolled back: the share of {shifted} moved by more than a factor of 2"
    changed = rules.flips(before.label, after.label)
    if changed < rules.FEWEST_FLIPS:
        return f"last: {changed:.2%} of the labels changed"
    return KEPT


def _clips(context: Context) -> Clips:
    """Read the training clips with their given labels."""
    table = read_table(context.inputs["labels"].read("labels.parquet"))
    data = context.inputs["data"]
    groups = read_table(data.read("clips.parquet"), "group")["group"]
    classes: list[str] = data.json("data.json")["classes"]
    clip_ids = np.array(table["clip"], np.int64)
    labels = np.array(table["label"], np.int64)
    return Clips(clip_ids, [groups[i] for i in table["clip"]], labels, table["origin"], classes)


def _read_labels(content: bytes) -> rules.Labels:
    table = read_table(content)
    posterior = np.array(table["posterior"], np.float64)
    return rules.Labels(np.array(table["label"], np.int64), posterior, np.array(table["accepted"], np.bool_))


def _out_of_fold(
    context: Context,
    work: RefineWork,
    trainee: Trainee,
    clips: Clips,
    before: rules.Labels,
    folds: npt.NDArray[np.int64],
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Predict every clip with a network that was trained without its fold: log-probabilities (n, N). The predictions of
    a finished fold are saved, so that a stopped stage resumes after it."""
    source = open_source(context, context.inputs["data"], work.clip, device)
    ranks = ranks_of(context, device)
    log_p_nN = np.empty((len(clips.clip_ids), len(clips.classes)), np.float64)
    for fold in range(work.rule.folds):
        path = context.workspace.scratch / f"{trainee.by}-{fold}.npy"
        held_out = folds == fold
        if not held_out.any():  # fewer groups than folds
            continue
        if context.rehearsals is not None and fold != folds[0]:  # the other folds take the same
            log_p_nN[held_out] = -np.log(len(clips.classes))
        elif ranks.agree(path.exists()):
            log_p_nN[held_out] = _read_scores(path)
        else:
            progress = f"training the {trainee.by} without fold {fold + 1} of {work.rule.folds}"
            context.listener.note(f"{context.stage.name}: {progress}")
            log_p_nN[held_out] = _predict_fold(context, work, trainee, clips, before, held_out, source, device)
            if context.first:
                _save_scores(path, log_p_nN[held_out])
    return log_p_nN


def _save_scores(path: Path, scores: npt.NDArray[np.float64]) -> None:
    """Write the scores of a fold, sealed, so that neither a kill nor a power loss leaves a partial file."""
    stream = io.BytesIO()
    np.save(stream, scores)
    write_sealed(path, stream.getvalue())


def _read_scores(path: Path) -> npt.NDArray[np.float64]:
    """Read the scores of a fold. Raises TrainingError: the file is damaged."""
    try:
        return np.load(io.BytesIO(unsealed(path.read_bytes())))
    except DamagedError as error:
        raise TrainingError(f"{path} {error}", hint=f"remove {path} to train this fold again") from None


def _predict_fold(
    context: Context,
    work: RefineWork,
    trainee: Trainee,
    clips: Clips,
    before: rules.Labels,
    held_out: npt.NDArray[np.bool_],
    source: ClipSource,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Train without the clips of a fold, then predict them: log-probabilities (clips held out, N)."""
    labels, fold = before.label[~held_out], int(np.flatnonzero(held_out)[0])  # its first clip identifies a fold
    if not (labels >= 0).any():
        raise DataError("a fold leaves no labelled clip to train on", hint="lower refine.folds, or raise labels.clean")
    draw = bits(work.rule.seed, Stream.FOLD_SEED, work.round, fold, trainee.by == "student")
    seed = int(draw.item() >> np.uint64(33))
    network = new_network(context, trainee.arch, clips.classes, trainee.weights, seed).to(device)
    views, threads = work.clip.views, workers(context.runtime)
    classes = tuple(clips.classes)
    feed = Feed(
        source, clips.clip_ids[~held_out], labels, work.augment, order_seed(seed), views, threads, classes=classes
    )
    scratch = context.workspace.scratch / f"fold-{trainee.by}-{fold}"
    scratch.mkdir(exist_ok=True)
    times = work.rule.folds
    job = label_job(context, network, trainee.phase, trainee.input, feed, device, scratch, times)
    with naming_stage(context):
        fit(job)

    def progress(done: int, of: int) -> None:
        context.stop.check()

    rehearsal, left_out = job.execution.rehearsal, clips.clip_ids[held_out]
    scores = predict(network, source, left_out, BATCH, 1, 1, trainee.input, progress, rehearsal)
    if context.first:
        shutil.rmtree(scratch)
    return np.log(np.maximum(scores.astype(np.float64), 1e-12))


def _flops(context: Context, work: RefineWork, clips: Clips, folds: npt.NDArray[np.int64]) -> int:
    """FLOPs of the trainings of all folds."""
    total = 0
    for trainee in work.networks:
        arch, view = trainee.arch, work.clip.seen(trainee.input)
        shape = measure(lambda arch=arch: build_or_refuse(arch, len(clips.classes), context.root), *view)
        for fold in sorted(set(folds.tolist())):
            steps = -(-int((folds != fold).sum()) // trainee.phase.train.batch)
            total += train_flops(trainee.phase, plan_forward(trainee.phase, (), ()), steps, shape)
    return total


def _save_round(
    context: Context,
    clips: Clips,
    work: RefineWork,
    before: rules.Labels,
    after: rules.Labels,
    metrics: dict[str, Any],
    run: dict[str, Any],
) -> Result:
    """Write refined.parquet and give the result of the round."""
    by = "both" if len(work.networks) == 2 else work.networks[0].by
    changed = after is not before
    table = {
        "clip": clips.clip_ids.tolist(),
        "origin": clips.origin,
        "given": clips.given.tolist(),
        "old": before.label.tolist(),
        "label": after.label.tolist(),
        "posterior": after.posterior.astype(np.float32).tolist(),
        "accepted": after.accepted.tolist(),
        "by": [by if changed and not clean else "" for clean in clips.clean],
    }
    if context.first:
        write_table(context.workspace.files / "refined.parquet", table)
    data = context.inputs["data"]
    # The true labels are read for the metrics of the report alone.
    true = np.array(read_table(data.read("truth.parquet"))["label"], np.int64)[clips.clip_ids]
    trusted = np.array(read_table(data.read("clips.parquet"), "trusted")["trusted"], np.bool_)[clips.clip_ids]
    label_metrics = rules.refinement_metrics(before.label, after, true, trusted & (true >= 0), clips.classes)
    return Result(metrics={"round": work.round, **metrics, **label_metrics}, run=run)
