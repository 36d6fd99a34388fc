"""`RefineWork`: one round of labels made anew from out-of-fold predictions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import json
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
from stagedkd.errors import DataError
from stagedkd.models.shapes import measure
from stagedkd.plan.work import RefineWork, Trainee
from stagedkd.stages.clips import open_source, workers
from stagedkd.stages.context import Context, Result
from stagedkd.stages.networks import build_or_refuse, new_network
from stagedkd.stages.tables import read_table, write_table
from stagedkd.stages.training import (
    check_weights,
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
    """The training clips: their numbers, groups, given labels and which of them are clean, and the classes."""

    numbers: npt.NDArray[np.int64]
    groups: list[str]
    given: npt.NDArray[np.int64]
    origin: list[str]
    classes: list[str]

    @property
    def clean(self) -> npt.NDArray[np.bool_]:
        return np.array([origin == CLEAN for origin in self.origin], np.bool_)


def refine(context: Context, work: RefineWork) -> Result:
    """Write refined.parquet: for each training clip the label before and after, the posterior, by whom, and whether it
    is accepted. A round that does not help passes on the labels of the one before, and says so.

    Raises:
        DataError: no clean label, or a fold without labels to train on.
    """
    clips, before = _clips(context), None
    previous = context.inputs.get("previous")
    earlier: dict[str, Any] = dict(previous.manifest.metrics) if previous else {}
    before = (
        _read(previous.file("refined.parquet")) if previous else rules.first_labels(clips.given, len(clips.classes))
    )
    if earlier and earlier["outcome"] != KEPT:
        over = f"not run: round {earlier['last_round']} ended it"
        facts = {name: earlier[name] for name in ("nll", "ece", "held_out", "last_round")}
        return _done(context, clips, work, before, before, {**facts, "outcome": over, "train_flops": 0}, {})
    if not clips.clean.any():
        raise DataError("no training clip has a clean label to calibrate on", hint="raise labels.clean")
    started, device = time.monotonic(), training_device(context)
    folds = rules.deal_folds(clips.groups, clips.given, work.rule.folds, work.rule.seed)
    raw = [_out_of_fold(context, work, trainee, clips, before, folds, device) for trainee in work.networks]
    sure, truth = clips.clean, clips.given[clips.clean]
    temperatures = [rules.calibrate(log_p[sure], truth) for log_p in raw]
    predicted = [rules.tempered(log_p, t) for log_p, t in zip(raw, temperatures, strict=True)]
    p = predicted[0] if len(predicted) == 1 else rules.mixture(predicted[0], predicted[1])
    right = p[sure].argmax(1) == truth
    facts: dict[str, Any] = {
        "nll": rules.negative_log_likelihood(p[sure], truth),
        "held_out": float(right.mean()),
        "ece": expected_calibration_error(p[sure].max(1).astype(np.float32), right),
        "last_round": work.round,
        "temperatures": temperatures,
        "train_flops": _flops(context, work, clips, folds),
    }
    made = rules.next_labels(work.rule, predicted, clips.given, clips.clean, before)
    facts["outcome"] = _outcome(clips, before, made, facts, earlier, int(right.sum()))
    kept = facts["outcome"].startswith((KEPT, "last"))
    run = run_facts(device, time.monotonic() - started, ranks=context.ranks)
    return _done(context, clips, work, before, made if kept else before, facts, run)


def _outcome(
    clips: Clips, before: rules.Labels, made: rules.Labels, facts: dict[str, Any], earlier: dict[str, Any], right: int
) -> str:
    """`kept`; `last: ...` (kept, and no round follows); or why the round's labels are dropped."""
    held, count = facts["held_out"], len(clips.classes)
    if rules.near_chance(right, int(clips.clean.sum()), count):
        return f"skipped: out of fold {held:.1%} of the clean clips are right, which is near chance"
    for name, noise in (("nll", 0.0), ("ece", rules.ECE_NOISE)):
        if earlier and facts[name] > earlier[name] + noise:
            return f"rolled back: held-out {name.upper()} rose from {earlier[name]:.4f} to {facts[name]:.4f}"
    moved = rules.shifted(before.label, made.label, count)
    if moved:
        return (
            f"rolled back: the share of {', '.join(clips.classes[c] for c in moved)} moved by more than a factor of 2"
        )
    changed = rules.flips(before.label, made.label)
    if changed < rules.FEWEST_FLIPS:
        return f"last: {changed:.2%} of the labels changed"
    return KEPT


def _clips(context: Context) -> Clips:
    given = read_table(context.inputs["labels"].file("labels.parquet"))
    data = context.inputs["data"]
    groups = read_table(data.file("clips.parquet"))["group"]
    classes: list[str] = json.loads(data.file("data.json").read_text("utf-8"))["classes"]
    numbers = np.array(given["clip"], np.int64)
    labels = np.array(given["label"], np.int64)
    return Clips(numbers, [groups[i] for i in given["clip"]], labels, given["origin"], classes)


def _read(path: Path) -> rules.Labels:
    table = read_table(path)
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
    """Log-probabilities (n, N) of every clip by a network that was trained without its fold. A fold that is done is
    kept, so that a stage that was stopped goes on from there."""
    check_weights(context, trainee.weights, trainee.arch)
    source = open_source(context, context.inputs["data"], work.clip, device)
    ranks = ranks_of(context, device)
    found = np.empty((len(clips.numbers), len(clips.classes)), np.float64)
    for fold in range(work.rule.folds):
        kept = context.workspace.scratch / f"{trainee.by}-{fold}.npy"
        out = folds == fold
        if not out.any():  # fewer groups than folds
            continue
        if ranks.agree(kept.exists()):
            found[out] = np.load(kept)
        else:
            context.listener.note(f"{context.stage.name}: {trainee.by} without fold {fold + 1} of {work.rule.folds}")
            found[out] = _fold(context, work, trainee, clips, before, out, source, device)
            if context.first:
                _keep(kept, found[out])
    return found


def _keep(path: Path, scores: npt.NDArray[np.float64]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, scores)
    part.replace(path)


def _fold(
    context: Context,
    work: RefineWork,
    trainee: Trainee,
    clips: Clips,
    before: rules.Labels,
    out: npt.NDArray[np.bool_],
    source: ClipSource,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Train without the clips in `out`, then predict them: log-probabilities (clips in out, N)."""
    labels, fold = before.label[~out], int(np.flatnonzero(out)[0])  # a fold is known by its first clip
    if not (labels >= 0).any():
        raise DataError("a fold leaves no labelled clip to train on", hint="lower refine.folds, or raise labels.clean")
    drawn = bits(work.rule.seed, Stream.FOLD_SEED, work.round, fold, trainee.by == "student")
    seed = int(drawn.item() >> np.uint64(33))
    network = new_network(context, trainee.arch, len(clips.classes), trainee.weights, seed).to(device)
    views, threads = work.clip.views, workers(context.runtime)
    feed = Feed(source, clips.numbers[~out], labels, work.augment, order_seed(seed), views, threads)
    scratch = context.workspace.scratch / f"fold-{trainee.by}-{fold}"
    scratch.mkdir(exist_ok=True)
    with naming_stage(context):
        fit(label_job(context, network, trainee.phase, trainee.input, feed, device, scratch))

    def progress(done: int, of: int) -> None:
        context.stop.check()

    scores = predict(network, source, clips.numbers[out], BATCH, 1, 1, trainee.input, progress)
    if context.first:
        shutil.rmtree(scratch)
    return np.log(np.maximum(scores.astype(np.float64), 1e-12))


def _flops(context: Context, work: RefineWork, clips: Clips, folds: npt.NDArray[np.int64]) -> int:
    """FLOPs of all trainings out of fold."""
    total = 0
    for trainee in work.networks:
        arch, seen = trainee.arch, work.clip.seen(trainee.input)
        shape = measure(lambda arch=arch: build_or_refuse(arch, len(clips.classes), context.root), *seen)
        for fold in sorted(set(folds.tolist())):
            steps = -(-int((folds != fold).sum()) // trainee.phase.train.batch)
            total += train_flops(trainee.phase, plan_forward(trainee.phase, (), ()), steps, shape)
    return total


def _done(
    context: Context,
    clips: Clips,
    work: RefineWork,
    before: rules.Labels,
    after: rules.Labels,
    facts: dict[str, Any],
    run: dict[str, Any],
) -> Result:
    by = "both" if len(work.networks) == 2 else work.networks[0].by
    changed = after is not before
    table = {
        "clip": clips.numbers.tolist(),
        "origin": clips.origin,
        "given": clips.given.tolist(),
        "old": before.label.tolist(),
        "label": after.label.tolist(),
        "posterior": after.posterior.astype(np.float32).tolist(),
        "accepted": after.accepted.tolist(),
        "by": [by if changed and not sure else "" for sure in clips.clean],
    }
    if context.first:
        write_table(context.workspace.files / "refined.parquet", table)
    data = context.inputs["data"]
    true = np.array(read_table(data.file("truth.parquet"))["label"], np.int64)[clips.numbers]  # for the report alone
    trusted = np.array(read_table(data.file("clips.parquet"))["trusted"], np.bool_)[clips.numbers]
    seen = rules.refinement_metrics(before.label, after, true, trusted & (true >= 0), clips.classes)
    return Result(metrics={"round": work.round, **facts, **seen}, run=run)
