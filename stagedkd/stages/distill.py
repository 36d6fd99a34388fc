"""`TeachWork` and `DistillWork`: both make a job for the one training loop and save what comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stagedkd.data.draws import Stream, bits, permutation
from stagedkd.errors import DataError, TrainingError
from stagedkd.models.network import Network, channels_last
from stagedkd.models.shapes import NetworkShape, measure
from stagedkd.plan.work import DistillWork, PhaseWork, TeachWork, Weights
from stagedkd.spec.schema import Arch, Input
from stagedkd.stages.clips import open_source, workers
from stagedkd.stages.context import Context, Done
from stagedkd.stages.networks import (
    build_or_refuse,
    device_of,
    load_network,
    new_network,
    own_losses,
    save_network,
)
from stagedkd.stages.pieces import NAME as PIECES
from stagedkd.stages.pieces import read_pieces, write_pieces
from stagedkd.stages.provenance import cpu, differences, environment
from stagedkd.stages.tables import read_table
from stagedkd.stages.weights import weights_file
from stagedkd.store.manifest import file_digest
from stagedkd.store.store import Artifact
from stagedkd.train.bridge import Bridge
from stagedkd.train.compute import hop_flops, train_flops
from stagedkd.train.correlation import CLIPS, Probe, correlation
from stagedkd.train.events import EventLog
from stagedkd.train.feed import Feed, Refined
from stagedkd.train.loop import Job, Progress, fit
from stagedkd.train.phases import route
from stagedkd.train.ranks import Ranks
from stagedkd.train.terms import Hop


def teach(context: Context, work: TeachWork) -> Done:
    """Train one network by cross-entropy, or keep its weights as they are."""
    classes, device = classes_of(context), training_device(context)
    network = new_network(context, work.arch, classes, work.weights, work.seed)
    check_weights(context, work.weights, work.arch)
    if work.phase is None:
        save_network(context, network)
        return Done(metrics={"steps": 0, "labels": work.labels}, run=run_facts(device, 0.0))
    feed = feed_of(context, work, work.labels, device)
    job = ce_job(context, network.to(device), work.phase, work.input, feed, device, context.workspace.scratch)
    shape = measure(lambda: build_or_refuse(work.arch, classes, context.root), *work.clip.seen(work.input))
    flops = train_flops(work.phase, route(work.phase, (), ()), feed.steps(work.phase), shape)
    return _fit(context, job, {"labels": work.labels, "train_flops": flops})


def ce_job(
    context: Context,
    network: Network,
    phase: PhaseWork,
    made: Input | None,
    feed: Feed,
    device: torch.device,
    scratch: Path,
) -> Job:
    """A training by labels alone."""
    _say_precision(context, (phase,), device)
    return _job(
        context,
        student=network,
        bridge=Bridge(),
        guides=(),
        cut=(),
        teacher_cut=(),
        phases=(phase,),
        feed=feed,
        inputs=(made,),
        shares=(),
        device=device,
        scratch=scratch,
        hop=Hop(seed=feed.seed),
    )


def distill(context: Context, work: DistillWork) -> Done:
    """Train a student by its phases against the networks above it, which stand still."""
    classes, device = classes_of(context), training_device(context)
    cast = [(work.teacher, work.teacher_input), *((guide.arch, guide.input) for guide in work.guides)]
    given = ("teacher", *work.guide_inputs)
    guides = [
        load_network(context.inputs[name], arch, classes, context.root).to(device).eval().requires_grad_(False)
        for name, (arch, _) in zip(given, cast, strict=True)
    ]
    student = new_network(context, work.arch, classes, work.weights, work.seed)
    check_weights(context, work.weights, work.arch)
    extra: dict[str, Any] = {"labels": "same"}
    if work.warm_start:
        extra["warm_started"] = _warm_start(context, student, guides[0])
    shapes = [
        measure(lambda arch=arch: build_or_refuse(arch, classes, context.root), *work.clip.seen(made))
        for arch, made in ((work.arch, work.input), *cast)
    ]
    feed = feed_of(context, work, "same", device)
    bridge = _bridge(work, shapes[0], shapes[1], len(feed.numbers))
    student.to(device)
    bridge.to(device)
    _say_precision(context, work.phases, device)
    probe = _probe(work, feed)
    measured = work.pairing == "correlation" or work.pair_weights != "uniform"
    job = _job(
        context,
        student=student,
        bridge=bridge,
        guides=tuple(guides),
        cut=work.cut,
        teacher_cut=work.teacher_cut,
        phases=work.phases,
        feed=feed,
        inputs=(work.input, *(made for _, made in cast)),
        shares=(work.share, *(guide.share for guide in work.guides)),
        device=device,
        scratch=context.workspace.scratch,
        probe=probe if measured else None,
        normalize=work.normalize is not None,
        hop=Hop(work.drop, work.shuffle, work.pair_weights, feed.seed),
        own=own_losses(context, work.phases),
    )
    extra["train_flops"] = hop_flops(work, shapes, len(feed.numbers))
    before = _correlation(context, job, probe)
    done = _fit(context, job, extra)
    if before is not None and context.first:
        _write_correlation(context, work, before, _correlation(context, job, probe), probe)
    return done


def _bridge(work: DistillWork, student: NetworkShape, teacher: NetworkShape, clips: int) -> Bridge:
    mine = {k: student.maps[run[-1]][0] for k, run in enumerate(work.cut)}
    theirs = {m: teacher.maps[run[-1]][0] for m, run in enumerate(work.teacher_cut)}
    return Bridge(work.pairing, work.phases, mine, theirs, clips)


def _warm_start(context: Context, student: Network, above: Network) -> int:
    """Copy the tensors that both networks have under one name and in one shape."""
    theirs = above.net.state_dict()
    copied = 0
    with torch.no_grad():
        for name, tensor in student.net.state_dict().items():
            if tensor.ndim and name in theirs and theirs[name].shape == tensor.shape:
                tensor.copy_(theirs[name])
                copied += 1
    what = f"{copied} tensors have the name and shape of the network above"
    context.listener.note(f"{context.stage.name}: warm start: {what}" + ("" if copied else ", so it starts cold"))
    return copied


def _probe(work: DistillWork, feed: Feed) -> Probe | None:
    """The clips over which substages are correlated; None where nothing is compared."""
    if not work.teacher_cut:
        return None
    chosen = feed.numbers[np.sort(permutation(len(feed.numbers), 0, Stream.PROBE)[:CLIPS])]
    return Probe(feed.source, chosen.tolist(), (work.input, work.teacher_input))


def _correlation(context: Context, job: Job, probe: Probe | None) -> list[list[float]] | None:
    if probe is None:
        return None
    if not probe.batches and job.probe is None:
        context.listener.note(f"{context.stage.name}: too few training clips to correlate substages")
        return None
    return correlation(job.student, job.guides[0], (job.cut, job.teacher_cut), probe).tolist()


def _write_correlation(
    context: Context, work: DistillWork, before: list[list[float]], after: list[list[float]] | None, probe: Probe | None
) -> None:
    """correlation.json: debiased linear CKA of student (rows) and teacher substages, before and after training."""
    names = [["+".join(run) for run in cut] for cut in (work.cut, work.teacher_cut)]
    clips = sum(len(part) for part in probe.batches) if probe else 0
    found = {"student": names[0], "teacher": names[1], "clips": clips, "before": before, "after": after}
    (context.workspace.files / "correlation.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def training_device(context: Context) -> torch.device:
    """Set threads and determinism, then give the device. A resumed stage keeps the threads it began with, unless it
    goes on with another number of processes."""
    scratch, say = context.workspace.scratch, context.listener.note
    device, pieces = device_of(context.runtime.device), read_pieces(scratch)
    ranks_of(context, device).wait()  # all decide by the same: the first one writes when all have read
    before = pieces[-1] if pieces else None
    threads = context.runtime.used_threads
    if before and before["gpus"] == context.ranks and before["threads"] != threads:
        say(f"going on with {before['threads']} threads, as this stage began, not {threads}")
        threads = int(before["threads"])
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    now = {**environment(), **_device_facts(device, context.ranks), "compile": context.runtime.compile}
    other = differences(before, now, ("then", "now")) if before else []
    if other:
        say(f"this stage goes on otherwise than it began, so to other last bits: {'; '.join(other)}")
    elif before is not None and not before:
        say(f"by what this stage began is not known: {scratch / PIECES} cannot be read; the last bits may be others")
    if context.first:
        write_pieces(scratch, [*pieces, now] if other or not before else pieces)
    return device


def _say_precision(context: Context, phases: tuple[PhaseWork, ...], device: torch.device) -> None:
    half = sorted({phase.train.precision for phase in phases} - {"fp32"})
    if half and device.type == "cpu":
        context.listener.note(f"{' and '.join(half)} on the CPU runs without oneDNN, and slowly: fp32 is faster there")


def classes_of(context: Context) -> int:
    """Number of classes of the data set."""
    text = context.inputs["data"].file("data.json").read_text("utf-8")
    return len(json.loads(text)["classes"])


def feed_of(
    context: Context, work: TeachWork | DistillWork, labels: Literal["same", "all"], device: torch.device
) -> Feed:
    """The training clips with their labels, refined ones too where the stage has them."""
    table = read_table(context.inputs["labels"].file("labels.parquet"))
    numbers = np.array(table["clip"], np.int64)
    given = np.array(table["label"], np.int64)
    if labels == "all":  # the one training that may read the hidden truth, and every report says so
        given = np.array(read_table(context.inputs["data"].file("truth.parquet"))["label"], np.int64)[numbers]
    if not (given >= 0).any() and isinstance(work, TeachWork):
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    source = open_source(context, context.inputs["data"], work.clip, device)
    refined = read_refined(context.inputs["refined"]) if "refined" in context.inputs else None
    views, threads = work.clip.views, workers(context.runtime)
    return Feed(source, numbers, given, work.augment, order_seed(work.seed), views, threads, refined)


def read_refined(artifact: Artifact) -> Refined:
    """The labels of a round, in the order of the training clips."""
    table = read_table(artifact.file("refined.parquet"))
    return Refined(np.array(table["posterior"], np.float32), np.array(table["accepted"], np.bool_))


def order_seed(seed: int) -> int:
    """The seed of order and views."""
    return int(bits(seed, Stream.ORDER_SEED).item() >> np.uint64(33))


def check_weights(context: Context, weights: Weights | None, arch: Arch) -> None:
    """Raises DataError: a weight file differs from the lock."""
    if weights is None:
        return
    path = weights_file(weights.name, arch, context.runtime)
    if file_digest(path) != weights.sha256:
        raise DataError(f"{path} differs from stagedkd.lock", hint="restore the file, or: stagedkd lock SPEC")


def _job(context: Context, **fields: Any) -> Job:
    if fields["device"].type == "cuda":
        for network in (fields["student"], *fields["guides"]):
            channels_last(network)
    return Job(
        events=EventLog(fields["scratch"] / "events.jsonl", muted=not context.first),
        compile=context.runtime.compile,
        checkpoint_seconds=context.runtime.checkpoint_seconds,
        interrupted=context.stop.get,
        on_step=context.listener.step,
        ranks=ranks_of(context, fields["device"]),
        **fields,
    )


def ranks_of(context: Context, device: torch.device) -> Ranks:
    """The processes that share a stage's trainings."""
    return Ranks(context.rank, context.ranks, device)


def _fit(context: Context, job: Job, extra: Mapping[str, Any]) -> Done:
    started = time.monotonic()
    at = run_job(context, job)
    save_network(context, job.student)
    used = int((job.feed.labels >= 0).sum())
    metrics = {"steps": at.total, "labelled_clips": used, "clips": len(job.feed.numbers), **extra}
    metrics["losses"] = {phase: dict(means) for phase, means in at.last.items()}
    facts = run_facts(job.device, time.monotonic() - started, at.waited, context.ranks)
    return Done(metrics=metrics, run=facts)


def run_job(context: Context, job: Job) -> Progress:
    """`fit`, with the stage's name in what goes wrong."""
    try:
        return fit(job)
    except TrainingError as error:
        raise TrainingError(f"stage {context.stage.name}: {error.message}", hint=error.hint) from error


def run_facts(device: torch.device, seconds: float, waited: float = 0.0, ranks: int = 1) -> dict[str, Any]:
    """Volatile facts for run.json; `waited` are the seconds of training that were spent making batches, `ranks` the
    processes that shared it."""
    return {
        **_device_facts(device, ranks),
        "train_seconds": seconds,
        "data_seconds": waited,
        "torch": torch.__version__,
    }


def _device_facts(device: torch.device, ranks: int) -> dict[str, Any]:
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": ranks,
    }
