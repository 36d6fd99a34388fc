"""Train one network with cross-entropy on labels, or keep its weights as they are."""

# pyright: reportUnknownMemberType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Sequence

import torch

from stagedkd.models.shapes import measure
from stagedkd.plan.work import TeachWork
from stagedkd.spec.schema import OutputsArch
from stagedkd.stages.context import Context, Result
from stagedkd.stages.networks import build_or_refuse, fit_weights, new_network, save_network
from stagedkd.stages.outputs import teach_outputs
from stagedkd.stages.training import (
    classes_of,
    feed_of,
    label_job,
    naming_stage,
    run_facts,
    save_result,
    training_device,
    validation_of,
)
from stagedkd.train.compute import train_flops
from stagedkd.train.loop import fit
from stagedkd.train.phases import plan_forward


def teach(context: Context, work: TeachWork) -> Result:
    """Train a network on labels alone. Without a phase, keep its weights as they are.

    Raises:
        DataError: the weights cannot be used; or there is no phase, and they have no head for the classes of the data.
    """
    classes, device = classes_of(context), training_device(context)
    if isinstance(work.arch, OutputsArch):
        teach_outputs(context, work.arch, classes)
        return Result(metrics={"steps": 0, "labels": "none"}, run=run_facts(device, 0.0))
    trained = work.phase is not None or work.headless
    network = new_network(context, work.arch, classes, work.weights, work.seed, trained=trained)
    if work.phase is None:
        save_network(context, network)
        reason = _headless(context, work, classes)
        metrics = {"steps": 0, "labels": "none", **({"headless": reason} if reason else {})}
        return Result(metrics=metrics, run=run_facts(device, 0.0))
    feed = feed_of(context, work, work.labels, device)
    scratch, validation = context.workspace.scratch, validation_of(context, feed)
    job = label_job(context, network.to(device), work.phase, work.input, feed, device, scratch, validation=validation)
    shape = measure(lambda: build_or_refuse(work.arch, len(classes), context.root), *work.clip.seen(work.input))
    flops = train_flops(work.phase, plan_forward(work.phase, (), ()), feed.steps(work.phase), shape)
    with naming_stage(context):
        progress = fit(job)
    return save_result(context, job, progress, {"labels": work.labels, "train_flops": flops})


def _headless(context: Context, work: TeachWork, classes: Sequence[str]) -> str:
    """Return why weights that are used as they are give no head for the classes; "" if they do."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build_or_refuse(work.arch, len(classes), context.root)
    if work.weights is None and not work.arch.pretrained_from:
        return ""
    return fit_weights(network, work.arch, classes, work.weights, context.runtime, trained=True).reason
