"""The process of the loggers of one training.

    python -m stagedkd.train.loggers

Its standard input has one JSON object a line: first {"run": fields of LoggedRun, "loggers": names}, then events. The
event `ended` has the state of the training; if the input ends without it, the training was killed. On its standard
output it writes a JSON object for each logger that fails: {"logger": name, "error": text}. What the tools print is
dropped.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from stagedkd.files import locked
from stagedkd.train.loggers.rows import LoggedRun, Logger, Row, State, open_logger, row_of

CLOSING_SECONDS = 300.0  # from the end of the input until this process ends; MLflow may make its tables meanwhile


class Open:
    """The loggers that work. One that raises is dropped, and its error is reported once."""

    def __init__(self, names: list[str], run: LoggedRun, reports: Any) -> None:
        self.reports = reports
        self.loggers: dict[str, Logger] = {}
        for name in names:
            try:
                self.loggers[name] = open_logger(name, run)
            except BaseException as error:
                self.report(name, error)
        self.last = {name: dict(logger.last) for name, logger in self.loggers.items()}

    def report(self, name: str, error: BaseException) -> None:
        """Report that a logger failed."""
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            text = f"the package is not installed: pip install 'stagedkd[{name}]'"
        else:
            first = str(error).strip().split("\n")[0]
            text = f"{type(error).__name__}: {first}" if first else type(error).__name__
        print(json.dumps({"logger": name, "error": text}), file=self.reports, flush=True)

    def log(self, row: Row) -> None:
        """Give a row to every logger, without the metrics that it has at this step already."""
        for name, logger in list(self.loggers.items()):
            last = self.last[name]
            new = row.after(last)
            try:
                if new.metrics:
                    logger.log(new)
            except BaseException as error:
                self.report(name, error)
                del self.loggers[name]
            last.update(dict.fromkeys(new.metrics, row.step))

    def close(self, state: State) -> None:
        """Close all loggers."""
        for name, logger in self.loggers.items():
            try:
                logger.close(state)
            except BaseException as error:
                self.report(name, error)


def main() -> None:
    """Log the events of the standard input until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training decides when it ends, and says so by the input
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    lines = queue.SimpleQueue[str | None]()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    request: dict[str, Any] = json.loads(lines.get() or "{}")
    run, state = LoggedRun(**request["run"]), "interrupted"
    with locked(run.path("locks") / run.id):  # the process of a killed training may still be closing the same run
        loggers = Open(request["loggers"], run, reports)
        while line := lines.get():
            event = json.loads(line)
            if event["event"] == "ended":
                state = event["state"]
            elif row := row_of(event):
                loggers.log(row)
        loggers.close(state)
    reports.close()
    os._exit(0)  # at once: threads of the tools may hang


def _read(lines: queue.SimpleQueue[str | None]) -> None:
    """Read the standard input; after its end, end this process if the loggers hang."""
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    timer = threading.Timer(CLOSING_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
