"""The parts that all kinds of work with a training share: the device, the clips, the job, the result."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.draws import Stream, bits
from stagedkd.data.subset import seen_clips
from stagedkd.data.views import layout
from stagedkd.errors import DataError, TrainingError
from stagedkd.models.network import Network, channels_last
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.work import DistillWork, NetworkWork, TeachWork, WeakenWork
from stagedkd.spec.labelled import uses_labels
from stagedkd.spec.schema import Input, Sees
from stagedkd.stages.clips import clips_of_split, open_source, workers
from stagedkd.stages.context import Context, Result
from stagedkd.stages.keeping import kept_views
from stagedkd.stages.loggers import training_loggers
from stagedkd.stages.networks import device_of, save_network
from stagedkd.stages.provenance import (
    ENVIRONMENTS,
    cpu,
    differences,
    environment,
    read_environments,
    write_environments,
)
from stagedkd.stages.tables import read_table
from stagedkd.store.runlog import EVENTS
from stagedkd.store.store import Artifact
from stagedkd.train.feed import Feed, Refined
from stagedkd.train.job import Execution, Job, Progress
from stagedkd.train.ranks import Ranks
from stagedkd.train.sinks import open_log
from stagedkd.train.step import DistillOptions
from stagedkd.train.tally import contributions
from stagedkd.train.validate import Validation, rarely, some_of_each


def label_job(
    context: Context,
    network: Network,
    phase: PhaseWork,
    network_input: Input | None,
    feed: Feed,
    device: torch.device,
    scratch: Path,
    times: int = 1,
    validation: Validation | None = None,
) -> Job:
    """The job of a training on labels alone, of which the stage has `times` alike."""
    warn_of_half_precision(context, (phase,), device)
    on_device(network, device)
    execution = execution_of(context, device, scratch, times)
    options = DistillOptions(seed=feed.seed)
    return Job(network, network_input, (phase,), feed, execution, options=options, validation=validation)


def validation_of(context: Context, feed: Feed) -> Validation | None:
    """The validation clips of a training; None if it is not validated. Of several ranks the first one validates."""
    if context.plan.validate_every == 0 or not context.first:
        return None
    clip_ids, labels = some_of_each(*clips_of_split(context.inputs["data"], "val"))
    every = context.plan.validate_every or rarely(len(clip_ids), len(feed.clip_ids))
    return Validation(feed.source, clip_ids, labels, every)


def execution_of(context: Context, device: torch.device, scratch: Path, times: int = 1) -> Execution:
    """Set up how a training of a stage is run. `scratch` is the folder of its checkpoints; the stage has `times` of
    such trainings."""
    part = "" if scratch == context.workspace.scratch else f"/{scratch.name}"  # a training out of fold
    name = context.stage.folder + part
    return Execution(
        device=device,
        scratch=scratch,
        log=open_log(scratch, name, muted=not context.first, loggers=training_loggers(context, scratch / EVENTS, name)),
        compile=context.runtime.compile,
        checkpoint_seconds=context.runtime.checkpoint_seconds,
        loss_every=context.runtime.loss_every,
        interrupted=context.stop.get,
        on_step=context.listener.step,
        note=lambda text: context.listener.note(f"{context.stage.name}: {text}"),
        ranks=ranks_of(context, device),
        rehearsal=context.rehearsal(times),
    )


def on_device(network: Network, device: torch.device) -> Network:
    """Move a network to the device, in the layout of the clips there (`fit_input`)."""
    network.to(device)
    if layout(device) == torch.channels_last_3d:
        channels_last(network)
    return network


@contextmanager
def naming_stage(context: Context) -> Generator[None]:
    """Inside, training errors get the name of the stage."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"stage {context.stage.name}: {error.message}", hint=error.advice) from error


def save_result(context: Context, job: Job, progress: Progress, extra: Mapping[str, Any]) -> Result:
    """Save the trained student and give the result of the stage.

    Args:
        progress: from `fit`. extra: further metrics.
    """
    save_network(context, job.student)
    labelled = int((job.feed.labels >= 0).sum())
    metrics = {"steps": progress.total, "labelled_clips": labelled, "clips": len(job.feed.clip_ids), **extra}
    if isinstance(work := context.stage.work, NetworkWork) and _part(work) is not None:
        metrics["clips_of"] = sum(context.inputs["labels"].manifest.metrics["labels"].values())
    metrics["losses"] = {phase: dict(means) for phase, means in progress.last.items()}
    metrics["terms"] = {phase: contributions(tally) for phase, tally in progress.tallies.items()}
    facts = run_facts(job.execution.device, progress.seconds, progress.waited, context.ranks)
    facts["validation_seconds"] = progress.validating
    if failures := job.execution.log.failures:
        facts["not_logged"] = failures
    return Result(metrics=metrics, run=facts)


def training_device(context: Context) -> torch.device:
    """Set threads and determinism, then give the device. A resumed stage keeps the number of threads that it was
    started with, unless the number of processes has changed."""
    scratch, note = context.workspace.scratch, context.listener.note
    device, environments = device_of(context.runtime.device), read_environments(scratch)
    ranks_of(context, device).wait()  # all ranks read the same file; the first one writes it after all have read
    before = environments[-1] if environments else None
    threads = context.runtime.used_threads
    if before and before["gpus"] == context.ranks and before["threads"] != threads:
        note(f"resuming with {before['threads']} threads, as this stage was started, not {threads}")
        threads = int(before["threads"])
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    now = {**environment(), **_device_facts(device, context.ranks), "compile": context.runtime.compile}
    changes = differences(before, now, ("then", "now")) if before else []
    if changes:
        note(f"resuming in a different environment; results may differ in the last bits: {'; '.join(changes)}")
    elif before is not None and not before:
        unreadable = f"{scratch / ENVIRONMENTS} is unreadable"
        note(f"cannot tell how this stage was started ({unreadable}); results may differ in the last bits")
    if context.first:
        write_environments(scratch, [*environments, now] if changes or not before else environments)
    return device


def warn_of_half_precision(context: Context, phases: tuple[PhaseWork, ...], device: torch.device) -> None:
    """Note where half precision runs without oneDNN."""
    half = sorted({phase.train.precision for phase in phases} - {"fp32"})
    if half and device.type == "cpu":
        context.listener.note(f"{' and '.join(half)} on the CPU runs without oneDNN, which may be slow; fp32 keeps it")


def classes_of(context: Context) -> tuple[str, ...]:
    """The classes of the data set, in the order of their ids."""
    return tuple(context.inputs["data"].json("data.json")["classes"])


def feed_of(
    context: Context, work: TeachWork | DistillWork, labels: Literal["same", "all", "refined"], device: torch.device
) -> Feed:
    """The training clips with their labels, and with refined labels if the stage has them as an input. A training on
    refined labels alone draws the clips whose label is accepted."""
    table = read_table(context.inputs["labels"].read("labels.parquet"))
    clip_ids = np.array(table["clip"], np.int64)
    given_labels = np.array(table["label"], np.int64)
    if labels == "all":  # the only training that may read the hidden true labels; every report says so
        given_labels = np.array(read_table(context.inputs["data"].read("truth.parquet"))["label"], np.int64)[clip_ids]
    if not (given_labels >= 0).any() and isinstance(work, TeachWork):
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    refined = read_refined(context.inputs["refined"]) if "refined" in context.inputs else None
    alone = frozenset({"ce"})
    if labels == "refined":
        assert refined is not None
        given_labels = np.where(refined.accepted, refined.posteriors.argmax(1), -1)
        alone |= {"pseudo"}
    if (part := _part(work)) is not None:
        rows = _seen_rows(context, part, np.array(table["label"], np.int64), clip_ids)
        if part is not work.sees:
            rows = np.setdiff1d(np.arange(len(clip_ids)), rows)
        if not len(rows):
            raise DataError("no training clip is left for the teacher", hint="lower student.sees, or set sees: same")
        clip_ids, given_labels = clip_ids[rows], given_labels[rows]
        refined = refined and Refined(refined.posteriors[rows], refined.accepted[rows])
        if not (given_labels >= 0).any() and any(uses_labels(phase.losses) for phase in work.trainings):
            hint = "raise sees or labels.clean, or draw another part by labels.seed"
            raise DataError(f"none of the {len(rows)} training clips that the network sees has a label", hint=hint)
    source = open_source(context, context.inputs["data"], work.clip, device)
    data = context.inputs["data"].manifest.work.data_set
    assert data is not None
    return Feed(
        source,
        clip_ids,
        given_labels,
        work.augment,
        order_seed(work.seed),
        work.clip.views,
        workers(context.runtime),
        refined,
        classes_of(context),
        alone,
        kept_views=kept_views(data, work) if context.ranks == 1 else None,
    )


def _part(work: NetworkWork) -> Sees | None:
    """The part of the training clips that a network sees, or that it must not see; None: it sees all."""
    return work.sees or (work.avoids if isinstance(work, TeachWork) else None)


def _seen_rows(
    context: Context, sees: Sees, given_labels: npt.NDArray[np.int64], clip_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rows of the training clips that a network sees. Raises DataError: there are too few clips."""
    count, weaken = sees.clips_of(len(clip_ids)), context.inputs["labels"].manifest.work
    assert isinstance(weaken, WeakenWork)
    if count > len(clip_ids):
        message = f"the network sees {count} clips, but there are {len(clip_ids)} training clips"
        raise DataError(message, hint=f"set sees to {len(clip_ids)} or less")
    groups = read_table(context.inputs["data"].read("clips.parquet"), "group")["group"]
    own = [groups[clip] for clip in clip_ids.tolist()]
    whole = weaken.labels.by == "group"
    return seen_clips(given_labels, own, count, weaken.labels.seed, whole_groups=whole)


def read_refined(artifact: Artifact) -> Refined:
    """Read the labels of a round of refinement, in the order of the training clips."""
    table = read_table(artifact.read("refined.parquet"))
    return Refined(np.array(table["posterior"], np.float32), np.array(table["accepted"], np.bool_))


def order_seed(seed: int) -> int:
    """The seed of the order of the clips and of their views."""
    return int(bits(seed, Stream.ORDER_SEED).item() >> np.uint64(33))


def ranks_of(context: Context, device: torch.device) -> Ranks:
    """The processes that share a stage's trainings."""
    return Ranks(context.rank, context.ranks, device)


def run_facts(device: torch.device, seconds: float, waited: float = 0.0, ranks: int = 1) -> dict[str, Any]:
    """The volatile facts for run.json. `waited` is the part of the training time, in seconds, that was spent on making
    batches; `ranks` is the number of processes that shared the training."""
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
