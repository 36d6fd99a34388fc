"""`Teach` and `Distill`: both make a job for the one training loop and save what comes out."""

from __future__ import annotations

import json
import platform
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from stagedkd.data.draws import bits
from stagedkd.errors import DataError, TrainingError
from stagedkd.execute.clips import open_source, workers
from stagedkd.execute.context import Context, Done
from stagedkd.execute.networks import build_or_refuse, device_of, load_network, new_network, save_network
from stagedkd.execute.tables import read_table
from stagedkd.execute.weights import weights_file
from stagedkd.models.network import Network, channels_last
from stagedkd.models.shapes import measure
from stagedkd.plan.work import Cut, Distill, PhaseWork, Teach
from stagedkd.spec.schema import Input
from stagedkd.store.manifest import file_digest
from stagedkd.train import checkpoint
from stagedkd.train.events import EventLog
from stagedkd.train.feed import Feed
from stagedkd.train.loop import Job, fit
from stagedkd.train.phases import projectors


def teach(context: Context, work: Teach) -> Done:
    """Train one network by cross-entropy, or keep its weights as they are."""
    classes, device = classes_of(context), _device(context)
    network = new_network(context, work.arch, classes, work.weights, work.seed)
    _check_weights(context, work)
    if work.phase is None:
        save_network(context, network)
        return Done(metrics={"steps": 0, "labels": work.labels}, run=run_facts(device, 0.0))
    feed = _feed(context, work, work.labels, device)
    network.to(device)
    _say_precision(context, (work.phase,), device)
    job = _job(context, network, nn.ModuleDict(), None, (), (), (work.phase,), feed, device, (work.input, None))
    return _fit(context, job, labels=work.labels)


def distill(context: Context, work: Distill) -> Done:
    """Train a student by its phases against the network above it, which stands still."""
    classes, device = classes_of(context), _device(context)
    above = context.inputs["teacher"]
    teacher = load_network(above, work.teacher, classes, context.root).to(device).eval().requires_grad_(False)
    student = new_network(context, work.arch, classes, work.weights, work.seed)
    _check_weights(context, work)
    mine = measure(lambda: _meta(context, work, "arch", classes), *work.clip.seen(work.input)).maps
    theirs = measure(lambda: _meta(context, work, "teacher", classes), *work.clip.seen(work.teacher_input)).maps
    lifts = projectors(
        work.phases,
        {k: mine[run[-1]][0] for k, run in enumerate(work.cut)},
        {k: theirs[run[-1]][0] for k, run in enumerate(work.teacher_cut)},
    )
    student.to(device)
    lifts.to(device)
    feed = _feed(context, work, "same", device)
    _say_precision(context, work.phases, device)
    job = _job(
        context,
        student,
        lifts,
        teacher,
        work.cut,
        work.teacher_cut,
        work.phases,
        feed,
        device,
        (work.input, work.teacher_input),
    )
    return _fit(context, job, labels="same")


def _meta(context: Context, work: Distill, which: Literal["arch", "teacher"], classes: int) -> Network:
    return build_or_refuse(getattr(work, which), classes, context.root)


def _device(context: Context) -> torch.device:
    """Set threads and determinism, then give the device. A resumed stage keeps the threads it began with."""
    saved = checkpoint.load(context.workspace.scratch)
    threads = context.runtime.used_threads
    if saved is not None and saved["threads"] != threads:
        context.listener.note(f"going on with {saved['threads']} threads, as this stage began, not {threads}")
        threads = int(saved["threads"])
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    device = device_of(context.runtime.device)
    if saved is not None and saved["device"] != device.type:
        context.listener.note(f"this stage began on {saved['device']} and goes on on {device.type}: other last bits")
    return device


def _say_precision(context: Context, phases: tuple[PhaseWork, ...], device: torch.device) -> None:
    half = sorted({phase.train.precision for phase in phases} - {"fp32"})
    if half and device.type == "cpu":
        context.listener.note(f"{' and '.join(half)} on the CPU runs without oneDNN, and slowly: fp32 is faster there")


def classes_of(context: Context) -> int:
    """Number of classes of the data set."""
    text = context.inputs["data"].file("data.json").read_text("utf-8")
    return len(json.loads(text)["classes"])


def _feed(context: Context, work: Teach | Distill, labels: Literal["same", "all"], device: torch.device) -> Feed:
    table = read_table(context.inputs["labels"].file("labels.parquet"))
    numbers = np.array(table["clip"], np.int64)
    given = np.array(table["label"], np.int64)
    if labels == "all":  # the one training that may read the hidden truth, and every report says so
        given = np.array(read_table(context.inputs["data"].file("truth.parquet"))["label"], np.int64)[numbers]
    if not (given >= 0).any() and isinstance(work, Teach):
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    source = open_source(context, context.inputs["data"], work.clip, device)
    order = int(bits(work.seed, 51).item() >> np.uint64(33))
    return Feed(source, numbers, given, work.augment, order, work.clip.views, workers(context.runtime))


def _check_weights(context: Context, work: Teach | Distill) -> None:
    if work.weights is None:
        return
    path = weights_file(work.weights.name, work.arch, context.runtime)
    if file_digest(path) != work.weights.sha256:
        raise DataError(f"{path} differs from stagedkd.lock", hint="restore the file, or: stagedkd lock SPEC")


def _job(
    context: Context, student: Network, lifts: nn.ModuleDict, teacher: Network | None, cut: Cut, teacher_cut: Cut,
    phases: tuple[PhaseWork, ...], feed: Feed, device: torch.device, inputs: tuple[Input | None, Input | None],
) -> Job:  # fmt: skip
    if device.type == "cuda":
        for network in (student, teacher):
            if network is not None:
                channels_last(network)
    return Job(
        student=student, lifts=lifts, teacher=teacher, cut=cut, teacher_cut=teacher_cut, phases=phases, feed=feed,
        inputs=inputs, device=device, scratch=context.workspace.scratch,
        events=EventLog(context.workspace.scratch / "events.jsonl"),
        compile=context.runtime.compile, checkpoint_seconds=context.runtime.checkpoint_seconds,
        interrupted=context.stop.get, on_step=context.listener.step,
    )  # fmt: skip


def _fit(context: Context, job: Job, labels: str) -> Done:
    started = time.monotonic()
    try:
        at = fit(job)
    except TrainingError as error:
        message = f"stage {context.stage.name}: {error.message}"
        raise TrainingError(message, hint=error.hint) from error
    save_network(context, job.student)
    used = int((job.feed.labels >= 0).sum())
    metrics = {"steps": at.total, "labels": labels, "labelled_clips": used, "clips": len(job.feed.numbers)}
    metrics["losses"] = {phase: dict(means) for phase, means in at.last.items()}  # pyright: ignore[reportArgumentType]
    return Done(metrics=metrics, run=run_facts(job.device, time.monotonic() - started, at.waited))


def run_facts(device: torch.device, seconds: float, waited: float = 0.0) -> dict[str, Any]:
    """Volatile facts for run.json; `waited` are the seconds of training that were spent making batches."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type, "device_name": name, "threads": torch.get_num_threads(), "train_seconds": seconds,
        "data_seconds": waited,
        "torch": torch.__version__,
    }  # fmt: skip
