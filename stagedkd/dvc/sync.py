"""Write dvc.yaml to the disk, guard it, and commit to DVC what a run has published (commit.py). DVC is called by its
command line and never imported."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagedkd.dvc.commit import commit_stages, read_text, remove_remains
from stagedkd.dvc.pipeline import (
    GUARD,
    Pipeline,
    Source,
    dvc_stages,
    dvc_yaml,
    pruned,
    report_command,
    stage_of,
    stale_entries,
)
from stagedkd.dvc.text import MANAGED_NAME, Entry, made_for, read_stages
from stagedkd.errors import Origin, Problem, SpecError, StagedkdError, StaleError, UsageError, about
from stagedkd.files import write_whole
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.key import SHORT, Key
from stagedkd.plan.lock import read_lock
from stagedkd.plan.runtime import Runtime, load_runtime, load_tracked, tracked_params
from stagedkd.plan.work import KINDS
from stagedkd.spec.inherit import tidy_path
from stagedkd.spec.load import load_experiment

SYNC = "run: stagedkd dvc sync"
GUARD_TEXT = "dvc.yaml is what `stagedkd dvc sync` writes\n"


@dataclass(frozen=True)
class Project:
    """A project's folder, with the pipeline of the specs that its params.yaml lists."""

    root: Path
    pipeline: Pipeline

    def wanted(self) -> tuple[str, str]:
        """The text of dvc.yaml as it is ("" if it does not exist) and as it should be."""
        before = read_text(self.root / "dvc.yaml")
        return before, dvc_yaml(self.pipeline, before)

    def require_fresh(self) -> None:
        """Raise StaleError if dvc.yaml does not match the specs."""
        before, after = self.wanted()
        if before != after:
            raise _stale(before, after)


def load_project(root: Path) -> Project:
    """Read params.yaml and compile the specs that it lists.

    Raises:
        UsageError: it lists no specs, or the store or the results are outside the project.
        SpecError: params.yaml or a spec is wrong, or a spec does not exist.
        LockError: stagedkd.lock cannot be read.
    """
    tracked = load_tracked(root)
    if tracked is None:
        raise UsageError(
            f"{root / 'params.yaml'} lists no specs for DVC",
            hint="add a line such as: dvc: {specs: [specs/quickstart.yaml]}",
        )
    runtime = load_runtime(root)
    lock = read_lock(runtime.lock_path)
    sources: list[Source] = []
    problems: list[Problem] = []
    for name in tracked.specs:
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
            problems.append(Problem(f"'dvc.specs' in params.yaml: the spec {name} does not exist in the project"))
            continue
        try:
            experiment = load_experiment(tidy_path(path))
        except SpecError as error:
            problems += error.problems
            continue
        relative = path.resolve().relative_to(root.resolve()).as_posix()
        sources.append(Source(relative, compile_experiment(experiment, lock), _relative(experiment.files, root)))
    if problems:
        raise SpecError(problems)
    store, results = (_below(root, runtime.folder(name), name) for name in ("store", "results"))
    return Project(root, Pipeline(tuple(sources), store, results, tracked_params(root)))


def sync(root: Path, *, check: bool, commit: bool) -> list[str]:
    """Write dvc.yaml, and remove obsolete managed stages from dvc.lock and .gitignore files.

    Args:
        check: write nothing; raise StaleError if something would be written.
        commit: also commit to DVC the artifacts that the store has already.
    Returns:
        one line for each thing done.
    Raises:
        StaleError: see `check`; or dvc.yaml or dvc.lock cannot be read. See also `load_project`.
    """
    project = load_project(root)
    before, after = project.wanted()
    lock_path = root / "dvc.lock"
    lock = read_text(lock_path)
    stale = stale_entries(before, after, lock)
    if check:
        if before != after:
            raise _stale(before, after)
        if stale:
            message = (
                f"dvc.lock has {len(stale)} obsolete stages, which dvc.yaml does not have, such as {stale[0].name}"
            )
            raise StaleError(message, hint=SYNC)
        return ["dvc.yaml is up to date"]
    remove_remains(root, project.pipeline.store)
    lines: list[str] = []
    if before != after:
        write_whole(root / "dvc.yaml", after)
        lines.append("wrote dvc.yaml: " + _changes(before, after))
    if stale:
        write_whole(lock_path, pruned(lock, stale))
        lines.append(f"removed {len(stale)} obsolete stages from dvc.lock")
    current = _managed(after)
    for entry in (*stale, *(entry for name, entry in _managed(before).items() if name not in current)):
        _clean_ignored(root, entry.outs)
    if commit and in_dvc(root):
        lines += _commit_stored(project)
    return lines or ["dvc.yaml is up to date"]


def guard(root: Path) -> None:
    """Write the guard's out. Raises StaleError if dvc.yaml does not match the specs."""
    project = load_project(root)
    project.require_fresh()
    _write_guard(project)


def find_stage(root: Path, key: str) -> tuple[Plan, Stage]:
    """Find the stage of the synced plans whose key begins with `key`, with a plan that has the stage.

    dvc.yaml says for which cell it has a stage, so only that cell is compiled. If the stage is not found there, all
    specs are compiled and compared with dvc.yaml.

    Raises:
        UsageError: no stage matches, or several do. StaleError: dvc.yaml does not match the specs.
    """
    if (found := _find_in_cell(root, key)) is not None:
        return found
    project = load_project(root)
    project.require_fresh()
    matches = stage_of([source.plans for source in project.pipeline.sources], key)
    if not matches:
        raise UsageError(
            f"no stage of the specs in params.yaml has a key that begins with '{key}'",
            hint="if you have edited a spec, run: stagedkd dvc sync && dvc repro",
        )
    if len(matches) > 1:
        names = "\n    ".join(stage.folder for _, stage in matches[:8])
        message = f"{len(matches)} stages have keys that begin with {key}:\n    {names}"
        raise UsageError(message, hint="type more digits of the key")
    return matches[0]


def _find_in_cell(root: Path, key: str) -> tuple[Plan, Stage] | None:
    """Find a stage by the first 12 digits of its key in the cell that dvc.yaml names. None if it is not there."""
    kind, prefix = Key.parse(key)
    text, tracked = read_text(root / "dvc.yaml"), load_tracked(root)
    short = Key(prefix).short
    names = [name for name in ([kind] if kind else KINDS) if len(short) == SHORT]
    named = next((found for name in names if (found := made_for(text, Key(short).folder(name)))), None)
    if named is None or tracked is None or named[0] not in (Path(spec).as_posix() for spec in tracked.specs):
        return None
    spec, cell = named
    try:
        experiment = load_experiment(tidy_path(root / spec), (), (cell,) if cell else ())
    except StagedkdError:
        return None  # compiling everything will say what is wrong
    plan = compile_experiment(experiment, read_lock(load_runtime(root).lock_path)).cells[cell]
    matches = [stage for stage in plan.stages if stage.key and stage.key.is_meant(key, stage.work.kind)]
    return (plan, matches[0]) if len(matches) == 1 else None


def in_dvc(root: Path) -> bool:
    """Whether the project is in a DVC repository: its folder, or one above it in its Git repository, has `.dvc`."""
    for folder in (root, *root.parents):
        if (folder / ".dvc").is_dir():
            return True
        if (folder / ".git").exists():
            return False
    return False


def commit_run(plans: Plans, ran: Collection[str], runtime: Runtime, spec: Path | None, *, wrote: bool) -> list[str]:
    """After a run, commit to DVC the stages of dvc.yaml that the store has now, and the report.

    Args:
        plans: what was run.
        ran: the keys of the stages that were run just now.
        spec: the spec's file; None if only a part of the spec was run or values were overridden. The report is
            committed only with a spec.
        wrote: whether the report was written just now.
    Returns:
        notes, such as why nothing could be committed; [] if all went well, nothing is new, or there is no DVC
        repository.
    """
    root = Path(runtime.root)
    if os.environ.get("DVC_STAGE") or not (root / "dvc.yaml").is_file() or not in_dvc(root):
        return []  # with DVC_STAGE, DVC itself runs this process and commits the outs
    try:
        with about(Origin()):
            problem = _commit_run(plans, ran, runtime, spec, wrote=wrote)
    except StagedkdError as error:
        return [f"nothing was committed to DVC: {error.message}" + (f" ({error.hint})" if error.hint else "")]
    return [f"nothing was committed to DVC: {problem}"] if problem else []


def _commit_run(plans: Plans, ran: Collection[str], runtime: Runtime, spec: Path | None, *, wrote: bool) -> str:
    """Commit what `commit_run` says. Returns the problem in one line, or ""."""
    root, configured = Path(runtime.root), load_runtime(Path(runtime.root))
    if configured.folder("store") != runtime.folder("store"):
        return ""
    listed, locked = _managed(read_text(root / "dvc.yaml")), _names(root / "dvc.lock")
    same_results = configured.folder("results") == runtime.folder("results")
    report = _report_of(listed, root, spec) if same_results else None
    missing = [stage for stage in plans.unique.values() if stage.folder not in listed]
    if report and missing:
        return f"dvc.yaml lacks {len(missing)} of these stages ({SYNC})"
    new = [
        stage.folder
        for key, stage in plans.unique.items()
        if stage.folder in listed and (key in ran or stage.folder not in locked)
    ]
    if report and (wrote or report not in locked):
        new.append(report)
    if not new:
        return ""
    project = load_project(root)
    project.require_fresh()
    return _commit(project, new)


def _commit_stored(project: Project) -> list[str]:
    """Commit to DVC the stages that the store has and dvc.lock lacks, so that DVC does not run a stage that is back in
    dvc.yaml after an edit was undone."""
    locked = _names(project.root / "dvc.lock")
    names = [stage.name for stage in dvc_stages(project.pipeline) if MANAGED_NAME.match(stage.name)]
    store = project.root / project.pipeline.store
    stored = [name for name in names if name not in locked and (store / name / "files").is_dir()]
    if not stored and GUARD not in locked:
        return []
    problem = _commit(project, stored)
    if problem:
        return [f"the stages that the store has could not be committed to DVC: {problem}"]
    return [f"committed to DVC {len(stored)} stages that the store has"] if stored else []


def _commit(project: Project, names: Collection[str]) -> str:
    """Commit to DVC the guard and those of the stages whose files all exist. Returns the problem in one line, or ""."""
    _write_guard(project)
    guard_stage, *stages = dvc_stages(project.pipeline)
    wanted = [stage for stage in stages if stage.name in names]
    complete = [stage for stage in wanted if all((project.root / path).exists() for path in stage.paths)]
    if names and not complete:
        return ""
    return commit_stages(project.root, project.pipeline.store, [guard_stage, *complete])


def _write_guard(project: Project) -> None:
    path = project.root / project.pipeline.guard_out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, GUARD_TEXT)


def _report_of(listed: Mapping[str, Entry], root: Path, spec: Path | None) -> str | None:
    """The name of the stage in dvc.yaml that writes a spec's report; None if there is none."""
    if spec is None or not spec.resolve().is_relative_to(root):
        return None
    command = report_command(spec.resolve().relative_to(root).as_posix())
    return next((name for name, entry in listed.items() if entry.command == command), None)


def _names(path: Path) -> set[str]:
    """The names of all stages in a dvc.yaml or dvc.lock."""
    stages = read_stages(read_text(path), path.name)
    return {entry.name for entry in stages.entries} if stages else set()


def _managed(text: str) -> dict[str, Entry]:
    """The managed stages of a dvc.yaml, by name."""
    stages = read_stages(text, "dvc.yaml")
    return {entry.name: entry for entry in stages.entries if entry.managed} if stages else {}


def _changes(before: str, after: str) -> str:
    """Describe in one line how the managed stages of two texts of dvc.yaml differ."""
    old, new = _managed(before), _managed(after)
    added, obsolete = [name for name in new if name not in old], [name for name in old if name not in new]
    parts = [
        f"{len(names)} {what} stages, such as {names[0]}"
        for names, what in ((added, "new"), (obsolete, "obsolete"))
        if names
    ]
    return "; ".join(parts) or "the same stages, written differently"


def _stale(before: str, after: str) -> StaleError:
    if not before:
        return StaleError("dvc.yaml does not exist", hint=SYNC)
    return StaleError(f"dvc.yaml does not match the specs: {_changes(before, after)}", hint=SYNC)


def _clean_ignored(root: Path, outs: Iterable[str]) -> None:
    """Remove the lines that DVC wrote for these outs from the .gitignore files beside them."""
    for out in outs:
        ignored = (root / out).parent / ".gitignore"
        if not ignored.is_file():
            continue
        lines = ignored.read_text("utf-8").splitlines(keepends=True)
        remaining = [line for line in lines if line.strip() != "/" + Path(out).name]
        if not remaining:
            ignored.unlink()
        elif remaining != lines:
            write_whole(ignored, "".join(remaining))


def _below(root: Path, folder: Path, name: str) -> str:
    """A folder of the runtime relative to the project. Raises UsageError if it is outside."""
    try:
        return folder.relative_to(root.resolve()).as_posix()
    except ValueError:
        hint = f"DVC keeps only files inside the project: set runtime.{name} in params.yaml to a folder there"
        raise UsageError(f"runtime.{name} is {folder}, outside the project", hint=hint) from None


def _relative(files: Iterable[Path], root: Path) -> tuple[str, ...]:
    top = root.resolve()
    return tuple(path.relative_to(top).as_posix() for path in files if path.is_relative_to(top))
