"""`stagedkd store ...` looks after the store; `stagedkd reproduce` rebuilds a result. Only the latter loads torch."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagedkd.cli import completion
from stagedkd.cli.common import (
    AsJson,
    DataDir,
    Device,
    StoreDir,
    Threads,
    console,
    print_lines,
    print_notes,
    progress,
)
from stagedkd.errors import Advice, Interrupted, Origin, StagedkdError, StoreError, TrainingError, UsageError

if TYPE_CHECKING:
    from stagedkd.plan.graph import Plans
    from stagedkd.plan.runtime import Runtime
    from stagedkd.store.maintenance import Entry
    from stagedkd.store.store import Store

app = typer.Typer(no_args_is_help=True, help="Look after the store of artifacts.")
Specs = Annotated[
    list[Path] | None, typer.Argument(metavar="SPEC", help="Read these specs instead of all in the project.")
]


@app.command("ls")
def list_store(specs: Specs = None, store: StoreDir = None, as_json: AsJson = False) -> None:
    """List the artifacts with kind, key, size and age, and the specs that use them.

    These are the specs that you name, else all in the project.
    """
    from stagedkd.report.housekeeping import store_table
    from stagedkd.store.maintenance import artifacts, users

    runtime, opened = _open_store(store)
    plans, notes = _compile_specs(specs, runtime, strict=False)
    used, entries = users(plans), artifacts(opened)
    if as_json:
        rows = [
            {
                "kind": entry.kind,
                "key": entry.key,
                "bytes": entry.size,
                "age_seconds": round(entry.age),
                "readable": bool(entry.key),
                "specs": used.get(entry.key, []),
            }
            for entry in entries
        ]
        print(json.dumps(rows, indent=1))
        return
    console().print(store_table(entries, used))
    print_notes(notes)


@app.command()
def du(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Show the disk space of each kind of artifact, of unfinished stages, of clip caches and of kept outputs."""
    from rich.filesize import decimal

    from stagedkd.plan.runtime import KEPT_OUTPUTS, REHEARSALS
    from stagedkd.report.housekeeping import sizes_table
    from stagedkd.store.maintenance import artifacts, folder_size, leftovers

    runtime, opened = _open_store(store)
    sizes, counts = Counter[str](), Counter[str]()
    for entry in artifacts(opened):
        sizes[entry.kind] += entry.size
        counts[entry.kind] += 1
    for entry in leftovers(opened):
        name = "unfinished stages" if entry.part == "attempt" else "trash"
        sizes[name] += entry.size
        counts[name] += 1
    cache = runtime.folder("cache")
    names = {KEPT_OUTPUTS: "kept outputs", REHEARSALS: "rehearsals"}
    for path in cache.iterdir() if cache.is_dir() else ():
        name = names.get(path.name, "clip caches") if path.is_dir() else "locks and memos"
        sizes[name] += folder_size(path) if path.is_dir() else path.stat().st_size
        counts[name] += sum(1 for _ in path.iterdir()) if path.name in names else 1
    if as_json:
        print(json.dumps({name: {"bytes": sizes[name], "count": counts[name]} for name in sizes}, indent=1))
        return
    console().print(sizes_table(sizes, counts))
    print_lines([f"total: {decimal(sum(sizes.values()))}; store: {opened.root}; cache: {cache}"])


@app.command()
def verify(store: StoreDir = None) -> None:
    """Check the digests of all artifacts, run logs, checkpoints and records, and of the clip caches' indexes.

    Artifacts are checked with their manifests and inputs.
    """
    from stagedkd.data.cache_index import damaged_indexes
    from stagedkd.data.fingerprint import damaged_memo
    from stagedkd.store.verify import verify as verify_store

    runtime, opened = _open_store(store)
    cache, verified = runtime.folder("cache"), verify_store(opened)
    others = [*verified.damaged, *damaged_indexes(cache), *damaged_memo(cache / "hashes.json")]
    if verified.without_digest:
        names = verified.without_digest
        what = f"{len(names)} manifests have no digest, such as {names[0]}: an earlier version wrote them"
        print_notes([f"{what}, and a change of their metrics cannot be seen"])
    lines, hints = list[str](), list[str]()
    if broken := verified.broken:
        lines.append(f"{len(broken)} of {verified.artifacts} artifacts are broken:")
        lines += [f"  {name}: {line}" for name, rows in broken.items() for line in rows]
        hint = f"delete their folders in {opened.root} and run again to rebuild them"
        hints.append(f"{hint}, unless another version of stagedkd, which made them, still uses them")
    if others:
        lines += [f"{len(others)} other files are damaged:", *(f"  {line}" for line in others)]
        hints.append("delete the other files: a checkpoint costs its training, a record its facts, an index only time")
    if lines:
        raise StoreError("\n".join(lines), hint="; ".join(hints))
    print_lines([f"{verified.artifacts} artifacts are intact"])


@app.command()
def why(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="Explain the artifact or stage whose key starts with this.",
            show_default=False,
            autocompletion=completion.keys,
        ),
    ],
    specs: Specs = None,
    store: StoreDir = None,
) -> None:
    """Show what made an artifact and how it differs from a spec, or why a stage is a miss.

    It shows the artifact's inputs and your files with their digests.
    """
    from stagedkd.report.housekeeping import artifact_lines, comparison_lines
    from stagedkd.store.maintenance import find, users

    runtime, opened = _open_store(store)
    given = ("--store", str(store)) if store else ()
    plans, notes = _compile_specs(specs, runtime, strict=bool(specs))
    match = find(opened, key)
    if match is not None:
        from stagedkd.store.store import Artifact

        entry, manifest = match
        run = Artifact(entry.folder, manifest).run
        print_lines(artifact_lines(manifest, run, users(plans).get(manifest.key, [])))
        if specs:
            print_lines(comparison_lines(manifest, plans))
    elif not _explain_misses(key, plans, opened):
        files = [plan.spec.origin.file for each in plans.values() for plan in each.cells.values()][:1]
        lists = [
            shlex.join(["stagedkd", "store", "ls", *given]),
            *(Origin(file, given).command("plan") for file in files),
        ]
        hint = f"to list keys, run: {', or: '.join(lists)}"
        raise UsageError(f"neither the store nor a spec has a key that starts with {key}", hint=hint)
    print_notes(notes if match is None else ())


def _explain_misses(key: str, plans: dict[str, Plans], store: Store) -> bool:
    """Print, for every stage of the specs with this key, why the store lacks it. Returns whether there is any."""
    from stagedkd.store.why import why_miss

    stored, seen = list(store.manifests()), set[str]()
    for name, spec_plans in plans.items():
        for plan in spec_plans.cells.values():
            for stage in plan.stages:
                is_meant = stage.key is not None and stage.key.is_meant(key, stage.work.kind)
                if is_meant and stage.identity not in seen:
                    seen.add(stage.identity)
                    reason = f"{store.state(stage)}: {why_miss(plan, stage, stored)}"
                    print_lines([f"{stage.folder}, {stage.name} of {name}: {reason}"])
    return bool(seen)


@app.command()
def gc(
    specs: Specs = None,
    store: StoreDir = None,
    runs: Annotated[int, typer.Option("--runs", min=0, help="Keep what this many of the last runs need.")] = 5,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete what specs, dvc.lock, recent runs and active runs do not need; asks first. If what one of them needs is
    not known, nothing is deleted."""
    from stagedkd.report.housekeeping import store_table
    from stagedkd.store.maintenance import delete, dvc_outs, remove_stale, unreferenced, users
    from stagedkd.store.records import records

    runtime, opened = _open_store(store)
    plans, notes = _compile_specs(specs, runtime, strict=True)
    _require_known(plans, runtime)
    known_runs = records(opened.root, strict=True)
    entries = unreferenced(opened, users(plans), dvc_outs(Path(runtime.root) / "dvc.lock"), runs)
    print_notes(notes)
    if not entries:
        if not dry:
            remove_stale(opened)
        print_lines(["nothing to delete: everything in the store is needed"])
        return
    console().print(store_table(entries, {}))
    if dry:
        print_lines([f"would delete {_count_and_size(entries)}"])
        return
    if not yes and not _confirmed(f"delete {_count_and_size(entries)}?"):
        print_lines(["nothing was deleted"])
        return
    deleted = list(delete(opened, entries, known_runs, lambda text: print_notes([text])))
    remove_stale(opened)
    print_lines([f"deleted {_count_and_size(deleted)}"])


def _require_known(plans: dict[str, Plans], runtime: Runtime) -> None:
    """Raise StoreError if it is not known which artifacts the specs need."""
    hint = "name the specs whose artifacts are to stay: stagedkd store gc SPEC ..."
    if not plans:
        what = f"there is no spec below {Path(runtime.root) / 'specs'}, so which artifacts are needed is not known"
        raise StoreError(what, hint=f"call it in the folder of the project, or {hint}")
    for experiment in plans.values():
        if any(stage.key is None for stage in experiment.unique.values()):
            origin = next(iter(experiment.cells.values())).spec.origin
            lacks = "lacks its data or weights" if runtime.lock_path.exists() else "is missing"
            message = f"{origin.file}: {runtime.lock_path} {lacks}, so which artifacts the spec needs is not known"
            raise StoreError(message, hint=f"restore it from git, or run: {origin.command('lock')}; or {hint}")


def reproduce(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="Rebuild this results folder, artifact folder or student.safetensors.",
            show_default=False,
        ),
    ],
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="DIR", help="Rebuild in this new folder, or go on in it, instead of a temporary one."
        ),
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Rebuild a result in an empty store from its manifest alone, and compare it bit for bit.

    It takes a results folder, an artifact or a student.safetensors, and names what differs in code, packages, hardware
    and threads.
    """
    from stagedkd.experiment.reproduce import reproduce as rebuild
    from stagedkd.report.housekeeping import rebuilt_lines

    runtime, originals = _open_store(None, data_dir=data_dir, device=device, threads=threads)
    import tempfile

    try:
        with (
            tempfile.TemporaryDirectory() if store is None else nullcontext(str(store)) as folder,
            progress() as listener,
        ):
            rebuilt = rebuild(what, originals, runtime, Path(folder).resolve(), listener, requested=(device, threads))
    except Interrupted as error:
        if store is None:
            error.advice = Advice(
                "the same command begins anew, since the folder was temporary; with --store it goes on"
            )
        raise
    if rebuilt.differs:
        raise TrainingError("\n".join(rebuilt_lines(rebuilt)), hint=rebuilt.hint)
    print_lines(rebuilt_lines(rebuilt))


def _count_and_size(entries: list[Entry]) -> str:
    from rich.filesize import decimal

    plural = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {plural}, {decimal(sum(entry.size for entry in entries))}"


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        hint = "add --yes to delete without asking, or --dry-run to see what would be deleted"
        raise UsageError("there was no answer: nothing was deleted", hint=hint) from None


def _open_store(
    store: Path | None, *, data_dir: Path | None = None, device: str | None = None, threads: int | None = None
) -> tuple[Runtime, Store]:
    """Load the runtime of the project in the working folder, and open its store."""
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.spec.load import specs_root
    from stagedkd.store.store import Store

    root = specs_root(Path.cwd() / "any.yaml")
    runtime = load_runtime(root, store=store, data_dir=data_dir, device=device, threads=threads)
    folder = runtime.folder("store")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"the store {folder} is not a folder", hint="move it away, or name the store with --store")
    return runtime, Store(folder, runtime.lease_seconds)


def _compile_specs(specs: list[Path] | None, runtime: Runtime, *, strict: bool) -> tuple[dict[str, Plans], list[str]]:
    """Compile specs. Returns their plans by name, and notes about them. A spec that cannot be read is an error under
    `strict`, else a note."""
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import read_lock
    from stagedkd.spec.inherit import METHOD
    from stagedkd.spec.load import load_experiment
    from stagedkd.spec.yaml import read_yaml

    lock, notes = read_lock(runtime.lock_path), list[str]()
    compiled: dict[str, Plans] = {}
    for path in specs or _default_specs(Path(runtime.root)):
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        try:
            if not specs and set(read_yaml(path).map) <= METHOD:
                continue  # the user's own recipe
            plans = compile_experiment(load_experiment(path), lock)
        except StagedkdError as error:
            if strict:
                raise
            notes.append(f"skipped {path}: {error.message.splitlines()[0]}")
            continue
        if any(stage.key is None for stage in plans.unique.values()):
            unknown = f"stagedkd.lock lacks data or weights of {path}, so its artifacts are not known"
            notes.append(f"{unknown}; run: {Origin(str(path)).command('lock')}")
        compiled[plans.name if plans.name not in compiled else path.as_posix()] = plans
    return compiled, notes


def _default_specs(root: Path) -> list[Path]:
    """The specs below specs/, and those that params.yaml names for DVC, wherever they are."""
    from stagedkd.plan.runtime import load_tracked

    def fail(error: OSError) -> None:
        raise error  # what a folder holds that cannot be read may need anything

    tracked = load_tracked(root)
    paths = {root / path for path in tracked.specs} if tracked else set[Path]()
    for folder, _, names in os.walk(root / "specs", onerror=fail) if (root / "specs").exists() else ():
        paths |= {Path(folder, name) for name in names if fnmatch(name, "*.y*ml")}
    return sorted(paths)
