"""dvc.yaml on the disk: writing it, guarding it, and telling DVC what a run has published. DVC is a command line here,
never an import, and its analytics are off in what we start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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
from stagedkd.dvc.text import OWN_NAME, Entry, read_stages
from stagedkd.errors import Problem, SpecError, StagedkdError, StaleError, UsageError
from stagedkd.files import write_whole
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.lock import read_lock
from stagedkd.plan.runtime import Runtime, load_runtime, load_tracked, tracked_params
from stagedkd.spec.inherit import tidy_path
from stagedkd.spec.load import load_experiment

SYNC = "stagedkd dvc sync"
GUARD_TEXT = "dvc.yaml is what `stagedkd dvc sync` writes\n"


@dataclass(frozen=True)
class Project:
    """A project's folder with the pipeline of the specs that its params.yaml names."""

    root: Path
    pipeline: Pipeline

    def wanted(self) -> tuple[str, str]:
        """dvc.yaml as it is ("" where there is none) and as it should be."""
        before = _read(self.root / "dvc.yaml")
        return before, dvc_yaml(self.pipeline, before)

    def require_fresh(self) -> None:
        """Raise StaleError where dvc.yaml is not what the specs say."""
        before, after = self.wanted()
        if before != after:
            raise _stale(before, after)


def load_project(root: Path) -> Project:
    """Read params.yaml, compile the specs that it names.

    Raises:
        UsageError: it names none, or the store lies outside the project. SpecError, LockError: of the specs.
    """
    tracked = load_tracked(root)
    if tracked is None:
        raise UsageError(
            f"{root / 'params.yaml'} names no specs for DVC",
            hint="add a line such as: dvc: {specs: [specs/quickstart.yaml]}",
        )
    runtime = load_runtime(root)
    lock = read_lock(runtime.lock_path)
    sources: list[Source] = []
    problems: list[Problem] = []
    for name in tracked.specs:
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
            problems.append(Problem(f"'dvc.specs' of params.yaml: no spec {name} in the project"))
            continue
        try:
            found = load_experiment(tidy_path(path))
        except SpecError as error:
            problems += error.problems
            continue
        inside = path.resolve().relative_to(root.resolve()).as_posix()
        sources.append(Source(inside, compile_experiment(found, lock), _relative(found.files, root)))
    if problems:
        raise SpecError(problems)
    store, results = (_below(root, runtime.folder(name), name) for name in ("store", "results"))
    return Project(root, Pipeline(tuple(sources), store, results, tracked_params(root)))


def sync(root: Path, *, check: bool, commit: bool) -> list[str]:
    """Write dvc.yaml, take stages of ours that are no more out of dvc.lock and .gitignore files, and tell DVC of
    artifacts that the store has already. With `check` nothing is written.

    Returns:
        what was done, a line each.
    Raises:
        StaleError: under `check`, where something would be written. See `load_project`, too.
    """
    project = load_project(root)
    before, after = project.wanted()
    lock_path = root / "dvc.lock"
    lock = _read(lock_path)
    stale = stale_entries(before, after, lock)
    if check:
        if before != after:
            raise _stale(before, after)
        if stale:
            message = f"dvc.lock has {len(stale)} stages that dvc.yaml no longer has, such as {stale[0].name}"
            raise StaleError(message, hint=SYNC)
        return ["dvc.yaml is up to date"]
    lines: list[str] = []
    if before != after:
        write_whole(root / "dvc.yaml", after)
        lines.append("wrote dvc.yaml: " + _changes(before, after))
    if stale:
        write_whole(lock_path, pruned(lock, stale))
        lines.append(f"took {len(stale)} stages that are no more out of dvc.lock")
    kept = _own(after)
    for entry in (*stale, *(entry for name, entry in _own(before).items() if name not in kept)):
        _clean_ignored(root, entry.outs)
    if commit and in_dvc(root):
        lines += _commit_known(project)
    return lines or ["dvc.yaml is up to date"]


def guard(root: Path) -> None:
    """Write the guard's out where dvc.yaml is what the specs say. Raises StaleError where it is not."""
    project = load_project(root)
    project.require_fresh()
    _write_guard(project)


def find_stage(root: Path, key: str) -> tuple[Plan, Stage]:
    """The one stage of the synced plans whose key begins with `key`, with a plan that has it.

    Raises:
        UsageError: no stage, or several. StaleError: dvc.yaml is not what the specs say.
    """
    project = load_project(root)
    project.require_fresh()
    found = stage_of([source.plans for source in project.pipeline.sources], key)
    if not found:
        raise UsageError(
            f"no stage of the specs in params.yaml has the key {key}",
            hint=f"if it was one of a spec that is edited now: {SYNC}, then dvc repro",
        )
    if len(found) > 1:
        names = "\n    ".join(stage.folder for _, stage in found[:8])
        raise UsageError(f"{len(found)} stages have keys that begin with {key}:\n    {names}", hint="give more of it")
    return found[0]


def in_dvc(root: Path) -> bool:
    """Whether the project lies in a DVC repository: .dvc in its folder, or above it in its Git repository."""
    for folder in (root, *root.parents):
        if (folder / ".dvc").is_dir():
            return True
        if (folder / ".git").exists():
            return False
    return False


def commit_run(plans: Plans, ran: Collection[str], runtime: Runtime, spec: Path | None, *, wrote: bool) -> list[str]:
    """After a run, tell DVC of those stages in dvc.yaml that the store has now, by name, and of the report.

    Args:
        plans: what was run. ran: the keys of the stages that were run just now. spec: the file, where it was run whole
            and as it stands; else None, and its report is left alone. wrote: whether its report was written just now.
    Returns:
        notes, such as why DVC was not told; none where there is no DVC repository or nothing new.
    """
    root = Path(runtime.root)
    if os.environ.get("DVC_STAGE") or not (root / "dvc.yaml").is_file() or not in_dvc(root):
        return []  # DVC_STAGE: a stage of DVC's runs us, and DVC sees to what it makes
    try:
        usual = load_runtime(root)
        if usual.folder("store") != runtime.folder("store"):
            return []
        listed, known = _own(_read(root / "dvc.yaml")), _names(root / "dvc.lock")
        report = _report_of(listed, root, spec) if usual.folder("results") == runtime.folder("results") else None
        lacking = [stage for stage in plans.unique.values() if stage.folder not in listed]
        if report and lacking:
            return [f"dvc.yaml does not have {len(lacking)} of these stages, so DVC was not told: {SYNC}"]
        new = [
            stage.folder
            for key, stage in plans.unique.items()
            if stage.folder in listed and (key in ran or stage.folder not in known)
        ]
        if report and (wrote or report not in known):
            new.append(report)
        if not new:
            return []
        project = load_project(root)
        project.require_fresh()
        fault = _commit(project, new)
    except StagedkdError as error:
        return [f"DVC was not told: {error.message}" + (f" ({error.hint})" if error.hint else "")]
    return [f"DVC was not told: {fault}"] if fault else []


def _commit_known(project: Project) -> list[str]:
    """Tell DVC of what the store has and dvc.lock does not: a stage that came back is not run for that."""
    known = _names(project.root / "dvc.lock")
    stages = [made.name for made in dvc_stages(project.pipeline) if OWN_NAME.match(made.name)]
    store = project.root / project.pipeline.store
    there = [name for name in stages if name not in known and (store / name / "files").is_dir()]
    if not there and GUARD not in known:
        return []
    fault = _commit(project, there)
    if fault:
        return [f"DVC was not told of what the store has: {fault}"]
    return [f"told DVC of {len(there)} stages that the store has"] if there else []


def _commit(project: Project, names: Collection[str]) -> str:
    """`dvc commit` of those stages of which all files are here, and of the guard; the fault in short, or ""."""
    _write_guard(project)
    stages = [stage for stage in dvc_stages(project.pipeline) if stage.name in names]
    whole = [stage.name for stage in stages if all((project.root / path).exists() for path in stage.paths)]
    if names and not whole:
        return ""
    return _dvc(project.root, "commit", "-f", *(f"dvc.yaml:{name}" for name in (GUARD, *whole)))


def _dvc(root: Path, *arguments: str) -> str:
    """Run DVC's command line; what it said where it failed, else ""."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return ""
    said = [line for line in found.stderr.splitlines() if line.startswith("ERROR")]  # -q would hide these, too
    return said[0] if said else f"dvc ended with {found.returncode}"


def _write_guard(project: Project) -> None:
    path = project.root / project.pipeline.guard_out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, GUARD_TEXT)


def _report_of(listed: Mapping[str, Entry], root: Path, spec: Path | None) -> str | None:
    """The name of the stage in dvc.yaml that reports a spec."""
    if spec is None or not spec.resolve().is_relative_to(root):
        return None
    command = report_command(spec.resolve().relative_to(root).as_posix())
    return next((name for name, entry in listed.items() if entry.command == command), None)


def _names(path: Path) -> set[str]:
    found = read_stages(_read(path), path.name)
    return {entry.name for entry in found.entries} if found else set()


def _own(text: str) -> dict[str, Entry]:
    found = read_stages(text, "dvc.yaml")
    return {entry.name: entry for entry in found.entries if entry.own} if found else {}


def _changes(before: str, after: str) -> str:
    """What differs between two texts of dvc.yaml."""
    old, new = _own(before), _own(after)
    more, less = ([n for n in new if n not in old], "more"), ([n for n in old if n not in new], "less")
    parts = [f"{len(names)} stages {what}, such as {names[0]}" for names, what in (more, less) if names]
    return "; ".join(parts) or "the same stages, in other words"


def _stale(before: str, after: str) -> StaleError:
    if not before:
        return StaleError("there is no dvc.yaml", hint=SYNC)
    return StaleError(
        f"dvc.yaml is not what the specs say: as it should be, it has {_changes(before, after)}", hint=SYNC
    )


def _clean_ignored(root: Path, outs: Iterable[str]) -> None:
    """Take the lines that DVC wrote for these outs out of the .gitignore files beside them."""
    for out in outs:
        ignored = (root / out).parent / ".gitignore"
        if not ignored.is_file():
            continue
        lines = ignored.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.strip() != "/" + Path(out).name]
        if not kept:
            ignored.unlink()
        elif kept != lines:
            write_whole(ignored, "".join(kept))


def _below(root: Path, folder: Path, name: str) -> str:
    try:
        return folder.relative_to(root.resolve()).as_posix()
    except ValueError:
        hint = "DVC keeps what lies in the project: name a folder there in params.yaml"
        raise UsageError(f"runtime.{name} is {folder}, outside the project", hint=hint) from None


def _relative(files: Iterable[Path], root: Path) -> tuple[str, ...]:
    inside = root.resolve()
    return tuple(path.relative_to(inside).as_posix() for path in files if path.is_relative_to(inside))


def _read(path: Path) -> str:
    """The text of a file with the line ends that it has; "" where there is none."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StaleError(f"cannot read {path}: {error}", hint=f"mend it, then: {SYNC}") from None
