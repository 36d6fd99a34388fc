"""Train the student of one hop of the cascade, phase by phase, against the frozen networks above it."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagedkd.data.draws import Stream, permutation
from stagedkd.errors import DataError
from stagedkd.models.network import Network
from stagedkd.models.shapes import NetworkShape, measure
from stagedkd.plan.work import DistillWork
from stagedkd.spec.schema import LOGITS, Arch, Input, OutputsArch, Size
from stagedkd.stages.clip_weights import clip_weights
from stagedkd.stages.context import Context, Result
from stagedkd.stages.keeping import plan_keeping
from stagedkd.stages.kept import kept_phases
from stagedkd.stages.networks import build_or_refuse, load_network, new_network, user_losses
from stagedkd.stages.outputs import embedding_width, outputs_guide
from stagedkd.stages.training import (
    classes_of,
    execution_of,
    feed_of,
    naming_stage,
    on_device,
    ranks_of,
    save_result,
    training_device,
    validation_of,
    warn_of_half_precision,
)
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.compute import hop_flops
from stagedkd.train.correlation import CLIPS, Probe
from stagedkd.train.exits import ResponseModules
from stagedkd.train.feed import Feed
from stagedkd.train.guides import Guide, LiveGuide
from stagedkd.train.job import Job
from stagedkd.train.kept import KeptPhase
from stagedkd.train.loop import fit
from stagedkd.train.ranks import refuse_batch_statistics
from stagedkd.train.step import DistillOptions


def distill(context: Context, work: DistillWork) -> Result:
    """Train the student of a hop, and measure the correlation of its substages with the teacher's before and after."""
    classes, device = classes_of(context), training_device(context)
    networks = _guide_networks(context, work, len(classes), device)
    student = new_network(context, work.arch, classes, work.weights, work.seed)
    extra: dict[str, Any] = {"labels": "same"}
    teacher = networks[0]
    if work.warm_start:
        assert teacher is not None, "check_rules refuses a warm start from outputs"
        extra["warm_started"] = _warm_start(context, student, teacher)
    feed = feed_of(context, work, "same", device)
    shapes = [
        shape_of(arch, len(classes), context.root, work.clip.seen(network_input))
        for arch, network_input in ((work.arch, work.input), *_guide_archs(work))
    ]
    width = embedding_width(context.inputs["teacher"]) if teacher is None else shapes[1].width
    extra["train_flops"] = hop_flops(work, shapes, len(feed.clip_ids))
    probe = _probe(work, feed, teacher)
    guides = _guides(context, work, networks, feed, device)
    job = Job(
        student=on_device(student, device),
        input=work.input,
        phases=work.phases,
        feed=feed,
        execution=execution_of(context, device, context.workspace.scratch),
        guides=guides,
        kept=_kept(context, work, guides, feed, shapes, len(classes), device),
        adapters=_adapters(work, shapes[0], shapes[1], width, len(feed.clip_ids), len(classes), student).to(device),
        cut=work.cut,
        teacher_cut=work.teacher_cut,
        options=DistillOptions(work.drop, work.shuffle, work.pair_weights, feed.seed),
        user_losses=user_losses(context, work.phases),
        clip_weights=clip_weights(context, work.phases, feed.clip_ids),
        normalize=work.normalize is not None,
        probe=probe if work.pairing == "correlation" or work.pair_weights != "uniform" else None,
        validation=validation_of(context, feed),
    )
    warn_of_half_precision(context, work.phases, device)
    before = _correlation(context, job, probe)
    with naming_stage(context):
        progress = fit(job)
    result = save_result(context, job, progress, extra)
    if probe is not None and before is not None and context.first:
        after = _correlation(context, job, probe)
        _write_correlation(context, work, probe, {"before": before, "after": after, "mixtures": progress.mixtures})
    return result


def _guide_archs(work: DistillWork) -> list[tuple[Arch, Input | None]]:
    """The architectures and inputs of the teacher and the further guides."""
    return [(work.teacher, work.teacher_input), *((guide.arch, guide.input) for guide in work.guides)]


def _guide_networks(context: Context, work: DistillWork, classes: int, device: torch.device) -> list[Network | None]:
    """Load the teacher and the further guides, frozen, on the device; None for outputs from a file."""
    names = ("teacher", *work.guide_inputs)
    if any(phase.losses.comparing(LOGITS) for phase in work.phases):
        for name in names:
            if reason := context.inputs[name].manifest.metrics.get("headless"):
                message = f"a loss compares logits, but the {name} has no head for the classes: {reason}"
                raise DataError(message, hint="train the teacher, or use losses on features alone")
    networks = [
        None if arch.only_teaches else load_network(context.inputs[name], arch, classes, context.root)
        for name, (arch, _) in zip(names, _guide_archs(work), strict=True)
    ]
    return [network and on_device(network, device).eval().requires_grad_(False) for network in networks]


def shape_of(arch: Arch, classes: int, root: Path, view: tuple[int, Size]) -> NetworkShape:
    """Measure a network. Outputs from a file have no maps and cost nothing."""
    if arch.only_teaches:
        return NetworkShape(arch.trunk_params or 0, arch.trunk_params or 0, 0, {}, {})
    return measure(lambda: build_or_refuse(arch, classes, root), *view)


def _guides(
    context: Context, work: DistillWork, networks: Sequence[Network | None], feed: Feed, device: torch.device
) -> tuple[Guide, ...]:
    """The guides of the hop, the teacher first, each with its weight."""
    ranks, guides = ranks_of(context, device), list[Guide]()
    weights = (work.share, *(guide.share for guide in work.guides))
    names = ("teacher", *work.guide_inputs)
    for name, network, (arch, network_input), weight in zip(names, networks, _guide_archs(work), weights, strict=True):
        if network is None:
            assert isinstance(arch, OutputsArch)
            guides.append(outputs_guide(context.inputs[name], arch, feed.clip_ids.tolist(), weight, device))
            continue
        refuse_batch_statistics(network, ranks, "a guide")
        run = torch.compile(network.run) if context.runtime.compile else network.run
        run_from = torch.compile(network.run_from) if context.runtime.compile else network.run_from
        guides.append(LiveGuide(run, network_input, weight, ranks, run_from))
    return tuple(guides)


def _kept(
    context: Context,
    work: DistillWork,
    guides: Sequence[Guide],
    feed: Feed,
    shapes: Sequence[NetworkShape],
    classes: int,
    device: torch.device,
) -> tuple[KeptPhase, ...]:
    """Plan what the hop keeps of its frozen networks, say so, and set it up."""
    data = context.inputs["data"].manifest.work.data_set
    assert data is not None
    keeping = plan_keeping(work, data, len(feed.clip_ids), shapes, classes, context.runtime)
    if keeping.line:
        context.listener.note(f"{context.stage.name}: {keeping.line}")
    return kept_phases(context, work, keeping, guides, feed, shapes[1:], device)


def _adapters(
    work: DistillWork,
    student: NetworkShape,
    teacher: NetworkShape,
    width: int,
    clips: int,
    classes: int,
    network: Network,
) -> FeatureAdapters:
    """The adapters between the substages of the student and those of the teacher, by their channels, and the modules of
    the losses on logits and labels. `width` is that of the teacher's embeddings."""
    student_channels = {k: student.maps[run[-1]][0] for k, run in enumerate(work.cut)}
    teacher_channels = {m: teacher.maps[run[-1]][0] for m, run in enumerate(work.teacher_cut)}
    return FeatureAdapters(
        work.pairing,
        work.phases,
        student_channels,
        teacher_channels,
        clips,
        widths=(student.width, width),
        responses=ResponseModules(work.phases, student_channels, classes, clips, network),
    )


def _warm_start(context: Context, student: Network, teacher: Network) -> int:
    """Copy the teacher's tensors that have a tensor of the same name and shape in the student; give their number."""
    teacher_tensors = teacher.net.state_dict()
    copied = 0
    with torch.no_grad():
        for name, tensor in student.net.state_dict().items():
            if tensor.ndim and name in teacher_tensors and teacher_tensors[name].shape == tensor.shape:
                tensor.copy_(teacher_tensors[name])
                copied += 1
    cold = "" if copied else "; no tensor has the same name and shape, so the student starts from its initialisation"
    context.listener.note(f"{context.stage.name}: warm start: copied {copied} tensors from the network above{cold}")
    return copied


def _probe(work: DistillWork, feed: Feed, teacher: Network | None) -> Probe | None:
    """Set up how the correlation of substages is measured; None if nothing is compared."""
    if not work.teacher_cut or teacher is None:
        return None
    probe_clips = feed.clip_ids[np.sort(permutation(len(feed.clip_ids), 0, Stream.PROBE)[:CLIPS])]
    cuts, inputs = (work.cut, work.teacher_cut), (work.input, work.teacher_input)
    return Probe(feed.source, probe_clips.tolist(), teacher, cuts, inputs)


def _correlation(context: Context, job: Job, probe: Probe | None) -> list[list[float]] | None:
    """Measure rho (K, M) with the student as it is; None if there is no probe or it has too few clips."""
    if probe is None:
        return None
    if not probe.batches and job.probe is None:
        context.listener.note(f"{context.stage.name}: too few training clips to measure the correlation of substages")
        return None
    return probe.correlation(job.student).tolist()


def _write_correlation(context: Context, work: DistillWork, probe: Probe, measured: Mapping[str, Any]) -> None:
    """Write correlation.json: debiased linear CKA of student (rows) and teacher substages (columns), before and after
    the training; and `mixtures`, the shares of every epoch under the pairing `correlation` (see `Progress`)."""
    names = [["+".join(run) for run in cut] for cut in (work.cut, work.teacher_cut)]
    clips = sum(len(part) for part in probe.batches)
    values = {"student": names[0], "teacher": names[1], "clips": clips, **measured}
    (context.workspace.files / "correlation.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
