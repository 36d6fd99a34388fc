"""The loggers of a stage: its training, and what an evaluation adds to the logged run of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagedkd.plan.graph import Stage
from stagedkd.stages.context import Context
from stagedkd.store.runlog import EVENTS
from stagedkd.train.loggers.rows import LoggedRun, flat
from stagedkd.train.loggers.sink import LoggerSink

MODEL = ("params", "flops")  # metrics of an evaluation that are the same on every split


def training_loggers(context: Context, events: Path, name: str) -> tuple[LoggerSink, ...]:
    """Return the loggers of a training that the user chose, as one sink or none: a rehearsal logs nothing, and of
    several processes the first one alone logs.

    Args:
        events: the event log of the training. name: of the training, such as distill-1183da6ced05.
    """
    return _loggers(context, context.stage, events, name) if context.first else ()


def log_result(context: Context, metrics: Mapping[str, Any]) -> None:
    """Add the metrics of an evaluation to the logged run of its network, at the last step of the network's training:
    test/top1 and so on."""
    network, stage = context.inputs["network"], context.plan.inputs(context.stage)["network"]
    split, numbers = metrics["split"], {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    named = {f"model/{k}" if k in MODEL else f"{split}/{k}": v for k, v in numbers.items()}
    step = max((event["step"] for event in network.log.events if "step" in event), default=0)
    for sink in _loggers(context, stage, network.folder / EVENTS, stage.folder):
        sink.write("result", step=step, metrics=named)
        sink.write("ended", state="finished")


def _loggers(context: Context, stage: Stage, events: Path, name: str) -> tuple[LoggerSink, ...]:
    runtime, names = context.runtime, tuple(dict.fromkeys(context.runtime.log))
    if not names or context.rehearsals is not None:
        return ()
    identity = {"spec": context.plan.name, "stage": stage.name, "key": str(stage.identity)}
    run_id = name.replace("/", "-")
    run = LoggedRun(
        id=run_id,
        title=f"{stage.name}-{run_id}",
        project=context.root.name or "stagedkd",
        group=context.plan.name,
        kind=stage.work.kind,
        config={**identity, **flat(stage.work.model_dump(mode="json", exclude_none=True))},
        folder=str(runtime.folder("logs")),
    )
    return (LoggerSink(names, run, events, lambda text: context.listener.note(f"{context.stage.name}: {text}")),)
