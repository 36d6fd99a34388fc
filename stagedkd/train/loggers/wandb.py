"""Weights & Biases: one offline run for each training in wandb/, or an online one if WANDB_MODE says so."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import wandb

from stagedkd.train.loggers.rows import LoggedRun, Row, State

RESULTS = "results.json"  # in the folder of an offline run: all final metrics, for the folder that replaces it


class Wandb:
    """A run of a project.

    An offline run cannot be continued: each process makes a new folder. So the new folder gets all events since the
    first, and replaces the earlier folders of the run when it is written. An online run is continued by W&B.
    """

    def __init__(self, run: LoggedRun) -> None:
        above = Path(os.environ.get("WANDB_DIR") or run.path("."))
        self.mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.earlier = sorted((above / "wandb").glob(f"offline-run-*-{run.id}"))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            id=run.id,
            name=run.title,
            group=run.group,
            job_type=run.kind,
            config=dict(run.config),
            dir=above,
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.last: dict[str, int] = {}
        self.results: dict[str, float] = {}
        for path in (folder / RESULTS for folder in self.earlier):
            self.results |= json.loads(path.read_bytes()) if path.is_file() else {}
        self.whole = False  # whether the run has the rows of its training, not only its result

    def log(self, row: Row) -> None:
        self.whole |= not row.final
        metrics = dict(row.metrics)
        if row.final:
            metrics = self.results = {**self.results, **metrics}
            self.run.summary.update(metrics)
        if row.step >= self.run.step:
            self.run.log({**metrics, "_timestamp": row.time}, step=row.step)

    def close(self, state: State) -> None:
        self.run.finish(exit_code=0 if state == "finished" else 1)
        if self.mode != "offline":
            return
        (Path(self.run.dir).parent / RESULTS).write_text(json.dumps(self.results), "utf-8")
        for folder in self.earlier if self.whole else []:
            shutil.rmtree(folder)
