"""Trackio: one run for each training, in trackio/<project>.db, or on the Space or server that its variables name."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from stagedkd.train.loggers.rows import LoggedRun, Row, State

ONLINE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio:
    """A run of a project. Trackio keeps every row that it is given, so steps that it has are left out."""

    def __init__(self, run: LoggedRun) -> None:
        self.project = os.environ.get("TRACKIO_PROJECT") or run.project
        self.local = not any(os.environ.get(name) for name in ONLINE)
        names: list[str] = SQLiteStorage.get_runs(self.project) if self.local else []
        self.name = next((name for name in names if name.endswith(run.id)), run.title)
        self.run: Any = trackio.init(
            self.project,
            name=self.name,
            group=run.group,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.last = {name: int(row["step"]) for row in self._rows() for name in row}
        self.written = -1

    def _rows(self) -> list[dict[str, Any]]:
        """All rows of the run on this machine, in the order of their steps."""
        return SQLiteStorage.get_logs(self.project, self.name) if self.local else []

    def log(self, row: Row) -> None:
        self.run.log(dict(row.metrics), step=row.step)
        self.written = row.step

    def close(self, state: State) -> None:
        """Finish the run. Trackio writes in a thread that raises nothing, so what it wrote is read back.

        Raises:
            OSError: the last row is missing.
        """
        self.run.finish()
        if self.local and self.written >= 0 and self.written not in {row["step"] for row in self._rows()}:
            raise OSError(f"step {self.written} is not in {os.environ['TRACKIO_DIR']}")
