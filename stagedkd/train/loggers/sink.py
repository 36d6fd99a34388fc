"""The sink that hands the events of a training to the process of its loggers."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagedkd.store.runlog import read_events
from stagedkd.train.loggers.rows import LoggedRun

QUIET = {  # what the tools send or wait for unasked is off; the user's own variables take precedence
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
    "WANDB_ERROR_REPORTING": "false",
}
TRACKIO_ONLINE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
PATIENCE = {"finished": 310.0, "interrupted": 20.0, "failed": 20.0}  # seconds that a training waits for its loggers


def environment(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the loggers' process: what is `given`, and where it says nothing, what keeps the tools
    off the network and below `folder`. Modules in the working folder are not found."""
    quiet = {**QUIET, "TRACKIO_DIR": str(folder / "trackio")}
    if not any(given.get(name) for name in TRACKIO_ONLINE):
        quiet["HF_HUB_OFFLINE"] = "1"  # Trackio asks the hub for the user's name, also for a local run
    return {**quiet, **given, "PYTHONSAFEPATH": "1"}


class LoggerSink:
    """Logs a training with the named tools. It never waits for them before the training ends, and never raises.

    With the first event the loggers get all events that the file `events` has: those of this training before it was
    interrupted, too. What goes wrong is said once for each tool by `note`, and collected in `failures`.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun, events: Path, note: Callable[[str], None]) -> None:
        self.names, self.run, self.events, self.note = tuple(names), run, events, note
        self.lines = queue.SimpleQueue[str | None]()
        self.reports = queue.SimpleQueue[dict[str, str]]()
        self.thread: threading.Thread | None = None
        self.failures: dict[str, str] = {}

    def write(self, event: str, **fields: Any) -> None:
        if self.thread is None:
            if event == "ended":
                return
            self._start()
        self.lines.put(json.dumps({"time": round(time.time(), 3), **fields, "event": event}))
        if event == "ended":
            self._end(PATIENCE[fields["state"]])
        self._tell()

    def _start(self) -> None:
        """Start the process, and send it the events so far. A tool leaves out steps that it has."""
        self.lines.put(json.dumps({"run": asdict(self.run), "loggers": self.names}))
        with suppress(OSError):
            for past in read_events(self.events.read_bytes())[0]:
                self.lines.put(json.dumps(dict(past)))
        self.thread = threading.Thread(target=self._feed, daemon=True)
        self.thread.start()

    def _feed(self) -> None:
        """Start the process and write all lines to it; then wait until it ends."""
        command = [sys.executable, "-m", "stagedkd.train.loggers"]
        pipe, drop = subprocess.PIPE, subprocess.DEVNULL
        variables = environment(Path(self.run.folder), os.environ)
        try:
            process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=drop,
                env=variables,
                encoding="utf-8",
                start_new_session=True,
            )
        except OSError as error:
            self._report_all(str(error))
            return
        assert process.stdin and process.stdout
        with process:
            reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
            reader.start()
            with suppress(OSError):  # the process has ended: its exit code says so below
                for line in iter(self.lines.get, None):
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
            with suppress(OSError):
                process.stdin.close()
            reader.join()
        if code := process.returncode:
            self._report_all(f"the process of the loggers ended early, with code {code}")

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.reports.put(json.loads(line))

    def _report_all(self, error: str) -> None:
        for name in self.names:
            self.reports.put({"logger": name, "error": error})

    def _end(self, seconds: float) -> None:
        """Wait until the loggers have written everything, but not longer than this. They end by themselves."""
        assert self.thread is not None
        self.lines.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self._report_all(f"it has not written everything after {seconds:.0f} seconds; it goes on without the run")

    def _tell(self) -> None:
        """Note what failed since the last call, once for each tool."""
        with suppress(queue.Empty):
            while True:
                report = self.reports.get_nowait()
                name, error = report["logger"], report["error"]
                if name not in self.failures:
                    self.failures[name] = error
                    self.note(f"{name} does not log {self.run.id}: {error}")
