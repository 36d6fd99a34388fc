"""MLflow: one run for each training, in mlflow.db (SQLite) or on the server that MLFLOW_TRACKING_URI names."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import os

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from stagedkd.files import locked
from stagedkd.train.loggers.rows import LoggedRun, Row, State

RUN = "stagedkd.run"  # the tag by which a run is found again: MLflow chooses the ids of its runs
LONGEST, MOST = 500, 100  # characters of a parameter, parameters in a request
STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Mlflow:
    """A run of an experiment. MLflow keeps every point that it is given, so steps that it has are left out."""

    def __init__(self, run: LoggedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path('mlflow.db')}"
        with locked(run.path("mlflow.lock")):  # several processes may begin at once, and the first makes the tables
            self.client = MlflowClient(uri)
            experiment = self._experiment(run, local=uri.startswith("sqlite:"))
            query = f"tags.`{RUN}` = '{run.id}'"
            found = self.client.search_runs([experiment], query, max_results=1)
            tags = {RUN: run.id, "stagedkd.spec": run.group, "stagedkd.kind": run.kind}
            logged = found[0] if found else self.client.create_run(experiment, run_name=run.title, tags=tags)
        self.id: str = logged.info.run_id
        self.last = {name: self._last(name) for name in logged.data.metrics}
        self.client.update_run(self.id, "RUNNING")
        params = [Param(name, str(value)[:LONGEST]) for name, value in run.config.items()]
        for start in range(0, 0 if found else len(params), MOST):
            self.client.log_batch(self.id, params=params[start : start + MOST])

    def _experiment(self, run: LoggedRun, *, local: bool) -> str:
        """The id of the experiment, which is made if there is none."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        artifacts = run.path("mlflow-artifacts").resolve().as_uri() if local else None
        return self.client.create_experiment(name, artifact_location=artifacts)

    def _last(self, name: str) -> int:
        return max(metric.step for metric in self.client.get_metric_history(self.id, name))

    def log(self, row: Row) -> None:
        moment = int(row.time * 1000)
        self.client.log_batch(self.id, [Metric(name, value, moment, row.step) for name, value in row.metrics.items()])

    def close(self, state: State) -> None:
        self.client.set_terminated(self.id, STATES[state])
