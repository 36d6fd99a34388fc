"""`dvc.yaml` from compiled plans: a pure function to text. Every unique stage is a stage of DVC's, named as its folder
in the store; every spec has a report; a guard stands before all of them.

The guard depends on what the plans were compiled from and fails where dvc.yaml is not what they say. Its out is
constant and every stage without inputs depends on it, so that an edited spec stops `dvc repro` instead of reading "up
to date", and retrains nothing once dvc.yaml is right again. Outs are persistent: DVC deletes others before a stage
runs, and the store may have finished the work already.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagedkd.dvc.text import MADE_BY, MARK, Entry, quoted, read_stages, with_own, without
from stagedkd.errors import LockError, UsageError
from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.key import Key

GUARD, GUARD_OUT = "stagedkd-guard", "dvc-guard.txt"
SUMMARY, NETWORKS, CLASSES = "summary.json", "networks.json", "classes.json"  # what DVC shows of a report
REPORT = ("metrics.json", "report.html", "student.safetensors")
GRID_REPORT = ("cells.csv", "metrics.json", "report.html", "table.tex")


@dataclass(frozen=True)
class Source:
    """A spec that params.yaml names; `path` and `files` (what it was read from) are relative to the project."""

    path: str
    plans: Plans
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the folder in the results."""
        return self.plans.name if len(self.plans.cells) > 1 else next(iter(self.plans.cells.values())).name


@dataclass(frozen=True)
class Pipeline:
    """All that dvc.yaml is made of. `store` and `results` are relative to the project's folder; `params` are the keys
    of params.yaml that dvc.yaml depends on."""

    sources: tuple[Source, ...]
    store: str = "store"
    results: str = "results"
    params: tuple[str, ...] = ("dvc",)

    @property
    def unique(self) -> Mapping[Key, Stage]:
        """Every stage of all specs once, by key."""
        return {key: stage for source in self.sources for key, stage in source.plans.unique.items()}

    @property
    def guard_out(self) -> str:
        return f"{self.store}/{GUARD_OUT}"

    @property
    def reports(self) -> Mapping[str, Source]:
        """The specs by the names of their report stages."""
        slugs = [_slug(source.name) for source in self.sources]
        told = [
            f"{slug}-{hashlib.sha256(source.name.encode()).hexdigest()[:8]}" if slugs.count(slug) > 1 else slug
            for slug, source in zip(slugs, self.sources, strict=True)
        ]
        return {f"report-{name}": source for name, source in zip(told, self.sources, strict=True)}


@dataclass(frozen=True)
class DvcStage:
    """A stage of dvc.yaml. `params` are keys of params.yaml, `values` a file all of whose values DVC shows beside the
    metrics; `plots` maps a path to its properties."""

    name: str
    command: str
    about: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    persist: bool = True
    params: tuple[str, ...] = ()
    values: str = ""
    metrics: tuple[str, ...] = ()
    plots: Mapping[str, Mapping[str, str]] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files and folders that it reads or makes."""
        return (*self.deps, *self.outs, *self.metrics, *(self.plots or {}))


def dvc_stages(pipeline: Pipeline) -> tuple[DvcStage, ...]:
    """The stages of a pipeline: the guard, every unique stage, the reports.

    Raises:
        LockError: a key waits for stagedkd.lock. UsageError: two specs have one name.
    """
    _check(pipeline)
    files = {file for source in pipeline.sources for file in source.files}
    files |= {"stagedkd.lock"} if any(stage.work.reads_lock for stage in pipeline.unique.values()) else set()
    guard = DvcStage(
        GUARD,
        "stagedkd dvc guard",
        "fails where dvc.yaml is not what the specs say",
        tuple(sorted(files)),
        (pipeline.guard_out,),
        params=pipeline.params,
    )
    return (guard, *_work(pipeline), *(_report(pipeline, name, source) for name, source in pipeline.reports.items()))


def dvc_yaml(pipeline: Pipeline, text: str = "", file: str = "dvc.yaml") -> str:
    """The text of dvc.yaml: `text` with our stages as they should be, and the user's as they are.

    Raises:
        StaleError: `text` is no dvc.yaml, or a stage of the user's has the name of one of ours. See `dvc_stages`.
    """
    stages = dvc_stages(pipeline)
    names = {stage.name for stage in stages}
    return with_own(text, lambda indent: _lines(stages, indent), names, file)


def stale_entries(before: str, after: str, lock: str) -> tuple[Entry, ...]:
    """The stages of ours in dvc.lock (text `lock`) that dvc.yaml no longer has: `before` and `after` are its texts."""
    old, new, locked = (
        read_stages(text, name) for text, name in ((before, "dvc.yaml"), (after, "dvc.yaml"), (lock, "dvc.lock"))
    )
    ours = {entry.name for entry in old.entries if entry.own} if old else set[str]()
    kept = {entry.name for entry in new.entries} if new else set[str]()
    entries = locked.entries if locked else ()
    return tuple(entry for entry in entries if entry.name not in kept and (entry.own or entry.name in ours))


def pruned(lock: str, stale: Iterable[Entry]) -> str:
    """dvc.lock without these entries."""
    return without(lock, {entry.name for entry in stale}, "dvc.lock")


def stage_of(experiments: Iterable[Plans], key: str) -> list[tuple[Plan, Stage]]:
    """The stages whose key begins with `key`, each with a plan that has it; `<kind>-<key>`, as folders are named, is
    understood too."""
    _, prefix = Key.parse(key)
    found: dict[Key, tuple[Plan, Stage]] = {}
    for plan in (plan for plans in experiments for plan in plans.cells.values()):
        for stage in plan.stages:
            if prefix and stage.identity.is_meant(key, stage.work.kind):
                found.setdefault(stage.identity, (plan, stage))
    return list(found.values())


def report_command(spec: str) -> str:
    """The command of a spec's report stage."""
    return f"stagedkd report {shlex.quote(spec)}"


def _check(pipeline: Pipeline) -> None:
    names = [source.name for source in pipeline.sources]
    for source in pipeline.sources:
        if names.count(source.name) > 1:
            paths = " and ".join(s.path for s in pipeline.sources if s.name == source.name)
            message = f"{paths} are both named '{source.name}', so their results would lie in one folder"
            raise UsageError(message, hint="give one a `name`, or name it once in params.yaml")
        if any(not stage.locked for stage in source.plans.unique.values()):
            raise LockError(
                f"the keys of {source.path} wait for its data or weights", hint=f"stagedkd lock {source.path}"
            )


def _work(pipeline: Pipeline) -> Iterable[DvcStage]:
    users: dict[str, list[str]] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for source in pipeline.sources:
        for cell, plan in source.plans.cells.items():
            for stage in plan.stages:
                users.setdefault(stage.identity, []).append(
                    f"{stage.name} of {source.plans.name}" + (f", {cell}" if cell else "")
                )
                above = {_files(pipeline, upper) for upper in plan.inputs(stage).values()}
                needs[stage.identity] = tuple(sorted(above)) or (pipeline.guard_out,)
    for key, stage in pipeline.unique.items():
        first, *others = users[key]
        about = first + (f"; {len(others)} more share it" if others else "")
        yield DvcStage(stage.folder, f"stagedkd stage {key.short}", about, needs[key], (_files(pipeline, stage),))


def _files(pipeline: Pipeline, stage: Stage) -> str:
    return f"{pipeline.store}/{stage.folder}/files"


def _report(pipeline: Pipeline, name: str, source: Source) -> DvcStage:
    """Everything of the results' folder is an out, so that DVC puts it back together or not at all."""
    grid = len(source.plans.cells) > 1
    folder = f"{pipeline.results}/{source.name}"
    bars = {"template": "bar_horizontal", "x": "top1"}
    plots = {f"{folder}/{NETWORKS}": bars | {"y": "network", "title": f"Top-1 of {source.name}"}}
    if not grid:
        plots[f"{folder}/{CLASSES}"] = bars | {"y": "class", "title": f"Share right by class, student of {source.name}"}
    return DvcStage(
        name,
        report_command(source.path),
        f"results of {source.path}",
        tuple(_files(pipeline, stage) for stage in source.plans.unique.values()),
        tuple(f"{folder}/{file}" for file in (GRID_REPORT if grid else REPORT)),
        persist=False,
        values=source.path,
        metrics=(f"{folder}/{SUMMARY}",),
        plots=plots,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "spec"


def _lines(stages: Sequence[DvcStage], indent: int) -> list[str]:
    lines = [MARK]
    for stage in stages:
        lines += [f"{stage.name}:", f"  cmd: {quoted(stage.command)}", f"  desc: {quoted(stage.about)}"]
        lines += ["  meta: {made_by: " + MADE_BY + "}"]
        lines += ["  deps:", *(f"    - {quoted(path)}" for path in stage.deps)]
        params = [*stage.params, *([f"{quoted(stage.values)}:"] if stage.values else [])]
        lines += ["  params:", *(f"    - {param}" for param in params)] if params else []
        lines += ["  outs:"]
        for path in stage.outs:
            lines += [f"    - {quoted(path)}:", "        persist: true"] if stage.persist else [f"    - {quoted(path)}"]
        lines += ["  metrics:", *(f"    - {quoted(path)}" for path in stage.metrics)] if stage.metrics else []
        lines += ["  plots:"] if stage.plots else []
        for path, values in (stage.plots or {}).items():
            lines += [f"    - {quoted(path)}:", *(f"        {key}: {quoted(value)}" for key, value in values.items())]
    return [" " * indent + line for line in lines]
