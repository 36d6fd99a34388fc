"""What loggers receive: a logged run, and rows of metrics. A new logger is a class like `Logger`, in a file of its own,
and an entry in `open_logger`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

Scalar: TypeAlias = str | int | float | bool
State: TypeAlias = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class LoggedRun:
    """The run of a tool that belongs to one training.

    Attributes:
        id: follows from the stage's folder in the store, such as distill-1183da6ced05. So a training that resumes goes
            on in the same logged run.
        title: the id with the stage's name before it.
        project: the name of the project's folder. group: the name of the spec. kind: the kind of work.
        config: the stage's work as flat values.
        folder: all loggers write below it.
    """

    id: str
    title: str
    project: str
    group: str
    kind: str
    config: Mapping[str, Scalar]
    folder: str

    def path(self, name: str) -> Path:
        """A path in the folder of the loggers. The folder is made."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return Path(self.folder) / name


@dataclass(frozen=True)
class Row:
    """Metrics by name at one step of a training. `time` is in seconds since 1970. `final`: they are of the trained
    network."""

    step: int
    time: float
    metrics: Mapping[str, float]
    final: bool = False

    def after(self, last: Mapping[str, int]) -> Row:
        """The row without the metrics that were logged at this step or a later one. `last` holds the last step of each
        metric."""
        return replace(self, metrics={n: value for n, value in self.metrics.items() if self.step > last.get(n, -1)})


class Logger(Protocol):
    """Writes one logged run with one tool. Its class is called with a `LoggedRun`, and continues what the tool has of
    it. Every method may raise any exception: the tool then gets no more rows."""

    @property
    def last(self) -> Mapping[str, int]:
        """The last step of each metric that the tool had when the run was opened."""
        ...

    def log(self, row: Row) -> None:
        """Write a row. It has no step that a metric has already."""
        ...

    def close(self, state: State) -> None:
        """Write what is pending, and say how the training ended."""
        ...


def open_logger(name: str, run: LoggedRun) -> Logger:
    """Open a logged run with a tool. Its package is imported here and not before."""
    match name:
        case "tensorboard":
            from stagedkd.train.loggers.tensorboard import TensorBoard

            return TensorBoard(run)
        case "wandb":
            from stagedkd.train.loggers.wandb import Wandb

            return Wandb(run)
        case "mlflow":
            from stagedkd.train.loggers.mlflow import Mlflow

            return Mlflow(run)
        case "trackio":
            from stagedkd.train.loggers.trackio import Trackio

            return Trackio(run)
        case _:
            raise ValueError(f"there is no logger '{name}'")


def row_of(event: Mapping[str, Any]) -> Row | None:
    """Return an event of a training as a row of metrics; None if it has none."""
    metrics: dict[str, Any]
    match event["event"]:
        case "epoch":
            metrics = {f"train/{name}": event[name] for name in ("lr", "clips_per_s", "epoch") if name in event}
            metrics |= {f"train/loss/{name}": value for name, value in event["losses"].items()}
            for name, term in event.get("terms", {}).items():
                metrics |= {f"train/weighted/{name}": term["mean"], f"train/share/{name}": term["share"]}
        case "validation":
            metrics = {f"val/{name}": event[name] for name in ("top1", "loss") if name in event}
        case "result":
            metrics = dict(event["metrics"])
        case _:
            return None
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return Row(int(event["step"]), float(event["time"]), numbers, final=event["event"] == "result")


def flat(value: object, name: str = "") -> dict[str, Scalar]:
    """Return nested plain values as one level, such as {"phases.0.train.lr": 0.03}. Nulls are left out."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in cast("Mapping[object, object]", value).items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(cast("list[object]", value))]
    else:
        return {name: value} if isinstance(value, str | int | float | bool) else {}
    return {key: leaf for part, item in items for key, leaf in flat(item, f"{name}.{part}" if name else part).items()}
