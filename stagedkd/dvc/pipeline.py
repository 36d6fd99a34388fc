"""The text of dvc.yaml, as a pure function of compiled plans.

Every unique stage of the plans is one DVC stage, named like the stage's folder in the store. Every spec has a DVC stage
that writes its report. A guard runs before all of them.

The guard depends on the files that the plans were compiled from, and fails if dvc.yaml does not match the plans. Every
stage without inputs depends on the guard's out. So `dvc repro` stops after an edit of a spec, instead of printing "up
to date". The content of that out is constant, so nothing is retrained once dvc.yaml matches again.

The outs of stages are persistent: DVC deletes other outs before it runs a stage, but the store may hold the finished
artifact already.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stagedkd.dvc.text import MADE_BY, MARK, Entry, quoted, read_stages, with_managed, without
from stagedkd.errors import LockError, Origin, UsageError
from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.key import Key

GUARD, GUARD_OUT = "stagedkd-guard", "dvc-guard.txt"
SUMMARY, NETWORKS, CLASSES = "summary.json", "networks.json", "classes.json"  # what DVC shows as metrics and plots
PAGE, PLOTS = "report.html", "plots"  # the page, and the folder of its plots for print
REPORT = ("README.md", "metrics.json", PLOTS, PAGE, "student.json", "student.safetensors")
GRID_REPORT = ("cells.csv", "metrics.json", PLOTS, PAGE, "table.tex")


@dataclass(frozen=True)
class Source:
    """A spec that params.yaml lists. `path` is the spec, `files` are all files that it was read from; both are relative
    to the project."""

    path: str
    plans: Plans
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the spec's folder in the results."""
        return self.plans.name if len(self.plans.cells) > 1 else next(iter(self.plans.cells.values())).name


@dataclass(frozen=True)
class Pipeline:
    """Everything that dvc.yaml is computed from. `store` and `results` are folders relative to the project's folder.
    `params` are the keys of params.yaml that dvc.yaml depends on."""

    sources: tuple[Source, ...]
    store: str = "store"
    results: str = "results"
    params: tuple[str, ...] = ("dvc",)

    @property
    def unique(self) -> Mapping[Key, Stage]:
        """Every stage of all specs, once, by key."""
        return {key: stage for source in self.sources for key, stage in source.plans.unique.items()}

    @property
    def guard_out(self) -> str:
        """The path of the guard's out."""
        return f"{self.store}/{GUARD_OUT}"

    @property
    def reports(self) -> Mapping[str, Source]:
        """The specs, by the names of the DVC stages that write their reports."""
        slugs = [_slug(source.name) for source in self.sources]
        names = [
            f"{slug}-{hashlib.sha256(source.name.encode()).hexdigest()[:8]}" if slugs.count(slug) > 1 else slug
            for slug, source in zip(slugs, self.sources, strict=True)
        ]
        return {f"report-{name}": source for name, source in zip(names, self.sources, strict=True)}


@dataclass(frozen=True)
class DvcStage:
    """A stage of dvc.yaml.

    Attributes:
        about: the description, written as `desc`.
        made_for: a spec and the name of one of its cells that have the stage; () for the guard and the reports.
        persist: whether DVC keeps the outs when it runs the stage again.
        params: keys of params.yaml.
        values: a file whose values DVC shows beside the metrics; "" for none.
        plots: the properties of each plot, by its path.
    """

    name: str
    command: str
    about: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    made_for: tuple[str, str] | tuple[()] = ()
    persist: bool = True
    params: tuple[str, ...] = ()
    values: str = ""
    metrics: tuple[str, ...] = ()
    plots: Mapping[str, Mapping[str, str]] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files and folders that the stage reads or writes."""
        return (*self.deps, *self.outs, *self.metrics, *(self.plots or {}))


def dvc_stages(pipeline: Pipeline) -> tuple[DvcStage, ...]:
    """The DVC stages of a pipeline: the guard, every unique stage, the reports.

    Raises:
        LockError: a stage has no key yet since stagedkd.lock lacks its data or weights.
        UsageError: two specs have the same name.
    """
    _check(pipeline)
    files = {file for source in pipeline.sources for file in source.files}
    files |= {"stagedkd.lock"} if any(stage.work.reads_lock for stage in pipeline.unique.values()) else set()
    guard = DvcStage(
        GUARD,
        "stagedkd dvc guard",
        "fails if dvc.yaml does not match the specs",
        tuple(sorted(files)),
        (pipeline.guard_out,),
        params=pipeline.params,
    )
    return (
        guard,
        *_work_stages(pipeline),
        *(_report_stage(pipeline, name, source) for name, source in pipeline.reports.items()),
    )


def dvc_yaml(pipeline: Pipeline, text: str = "", file: str = "dvc.yaml") -> str:
    """The text that dvc.yaml should have: `text` with the managed stages replaced and the user's stages unchanged.

    Raises:
        StaleError: `text` is not a dvc.yaml, or a stage of the user has the name of a managed one.
        LockError, UsageError: see `dvc_stages`.
    """
    stages = dvc_stages(pipeline)
    names = {stage.name for stage in stages}
    return with_managed(text, lambda indent: render(stages, indent), names, file)


def stale_entries(before: str, after: str, lock: str) -> tuple[Entry, ...]:
    """The managed stages in dvc.lock that dvc.yaml no longer has.

    Args:
        before: the text of dvc.yaml as it was.
        after: the text of dvc.yaml as it should be.
        lock: the text of dvc.lock.
    """
    old, new, locked = (
        read_stages(text, name) for text, name in ((before, "dvc.yaml"), (after, "dvc.yaml"), (lock, "dvc.lock"))
    )
    managed = {entry.name for entry in old.entries if entry.managed} if old else set[str]()
    current = {entry.name for entry in new.entries} if new else set[str]()
    entries = locked.entries if locked else ()
    return tuple(entry for entry in entries if entry.name not in current and (entry.managed or entry.name in managed))


def pruned(lock: str, stale: Iterable[Entry]) -> str:
    """The text of dvc.lock without these entries."""
    return without(lock, {entry.name for entry in stale}, "dvc.lock")


def stage_of(experiments: Iterable[Plans], key: str) -> list[tuple[Plan, Stage]]:
    """Find all stages whose key begins with `key`, each with a plan that has the stage. `key` may also be the name of a
    folder, `<kind>-<key>`."""
    _, prefix = Key.parse(key)
    matches: dict[Key, tuple[Plan, Stage]] = {}
    for plan in (plan for plans in experiments for plan in plans.cells.values()):
        for stage in plan.stages:
            if prefix and stage.identity.is_meant(key, stage.work.kind):
                matches.setdefault(stage.identity, (plan, stage))
    return list(matches.values())


def report_command(spec: str) -> str:
    """The command of the DVC stage that writes a spec's report."""
    return f"stagedkd report {shlex.quote(spec)}"


def _check(pipeline: Pipeline) -> None:
    names = [source.name for source in pipeline.sources]
    for source in pipeline.sources:
        if names.count(source.name) > 1:
            paths = " and ".join(s.path for s in pipeline.sources if s.name == source.name)
            message = f"{paths} are both named '{source.name}', so their results would be in the same folder"
            raise UsageError(message, hint="set a different `name` in one of them, or list it only once in params.yaml")
        if any(not stage.locked for stage in source.plans.unique.values()):
            message = f"{source.path} has stages without keys: its data or weights are not in stagedkd.lock"
            raise LockError(message, hint=f"run: {Origin(source.path).command('lock')}")


def _work_stages(pipeline: Pipeline) -> Iterable[DvcStage]:
    users: dict[str, list[str]] = {}
    needs: dict[str, tuple[str, ...]] = {}
    made_for: dict[str, tuple[str, str]] = {}
    for source in pipeline.sources:
        for cell, plan in source.plans.cells.items():
            for stage in plan.stages:
                users.setdefault(stage.identity, []).append(
                    f"{stage.name} of {source.plans.name}" + (f", {cell}" if cell else "")
                )
                made_for.setdefault(stage.identity, (source.path, cell))
                above = {_files(pipeline, upper) for upper in plan.inputs(stage).values()}
                needs[stage.identity] = tuple(sorted(above)) or (pipeline.guard_out,)
    for key, stage in pipeline.unique.items():
        first, *others = users[key]
        about = first + (f"; {len(others)} more share it" if others else "")
        command, outs = f"stagedkd stage {key.short}", (_files(pipeline, stage),)
        yield DvcStage(stage.folder, command, about, needs[key], outs, made_for[key])


def _files(pipeline: Pipeline, stage: Stage) -> str:
    return f"{pipeline.store}/{stage.folder}/files"


def _report_stage(pipeline: Pipeline, name: str, source: Source) -> DvcStage:
    """The DVC stage that writes a spec's report. All files of the results folder are outs, so that DVC restores all of
    them or none."""
    grid = len(source.plans.cells) > 1
    folder = f"{pipeline.results}/{source.name}"
    bars = {"template": "bar_horizontal", "x": "top1"}
    plots = {f"{folder}/{NETWORKS}": bars | {"y": "network", "title": f"Top-1 of {source.name}"}}
    if not grid:
        plots[f"{folder}/{CLASSES}"] = bars | {"y": "class", "title": f"Top-1 by class, student of {source.name}"}
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


def render(stages: Sequence[DvcStage], indent: int, wdir: str = "") -> list[str]:
    """The lines of stages in a dvc.yaml, after `indent` columns. `wdir` is the project's folder relative to that file;
    "" if they are the same."""
    lines = [MARK]
    for stage in stages:
        lines += [f"{stage.name}:", f"  cmd: {quoted(stage.command)}", f"  desc: {quoted(stage.about)}"]
        lines += [f"  wdir: {wdir}"] if wdir else []
        meta = {"made_by": MADE_BY, **dict(zip(("spec", "cell"), stage.made_for, strict=False))}
        lines += ["  meta: {" + ", ".join(f"{name}: {quoted(value)}" for name, value in meta.items()) + "}"]
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
