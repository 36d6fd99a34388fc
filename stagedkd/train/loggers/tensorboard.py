"""TensorBoard: event files in tensorboard/<stage name>-<run id>/."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from stagedkd.train.loggers.rows import LoggedRun, Row, State


class TensorBoard:
    """A folder of event files. A training that resumes adds a file. It writes no step that an earlier file has, so no
    reader needs to know which steps were repeated."""

    def __init__(self, run: LoggedRun) -> None:
        above = run.path("tensorboard")
        folder = next(iter(sorted(above.glob(f"*{run.id}"))), above / run.title)
        self.last = _last_steps(folder)
        self.writer = EventFileWriter(str(folder))
        if not self.last:
            table = "\n".join(["| field | value |", "|---|---|", *(f"| {n} | {v} |" for n, v in run.config.items())])
            self.writer.add_event(Event(step=0, summary=text_pb("config", table)))
            self.writer.flush()

    def log(self, row: Row) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.metrics.items()]
        self.writer.add_event(Event(wall_time=row.time, step=row.step, summary=Summary(value=values)))
        self.writer.flush()

    def close(self, state: State) -> None:
        self.writer.close()


def _last_steps(folder: Path) -> dict[str, int]:
    """The last step of each metric in the event files of a folder. A file that a kill cut off ends at its last whole
    event."""
    last: dict[str, int] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                last[value.tag] = max(event.step, last.get(value.tag, -1))
    return last
