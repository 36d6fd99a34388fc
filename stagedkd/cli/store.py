"""`stagedkd store ...`: looking after what runs left; `stagedkd reproduce`. Only the latter loads torch."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagedkd.cli.common import AsJson, DataDir, Device, StoreDir, Threads, console, notes, progress, say
from stagedkd.errors import StagedkdError, StoreError, TrainingError, UsageError

if TYPE_CHECKING:
    from stagedkd.plan.graph import Plans
    from stagedkd.plan.runtime import Runtime
    from stagedkd.store.store import Store

app = typer.Typer(no_args_is_help=True, help="Look after the store: ls, verify, gc, du, why.")
Specs = Annotated[list[Path] | None, typer.Argument(metavar="[SPEC]...", help="Specs; all under specs/ if left out.")]


@app.command("ls")
def list_store(specs: Specs = None, store: StoreDir = None, as_json: AsJson = False) -> None:
    """List the artifacts: kind, key, size, age, and which of the specs use them."""
    from stagedkd.report.housekeeping import store_table
    from stagedkd.store.maintenance import artifacts, users

    runtime, kept = _store(store)
    plans, said = _plans(specs, runtime, strict=False)
    used, found = users(plans), artifacts(kept)
    if as_json:
        rows = [
            {
                "kind": e.kind,
                "key": e.key,
                "bytes": e.size,
                "age_seconds": round(e.age),
                "readable": bool(e.key),
                "specs": used.get(e.key, []),
            }
            for e in found
        ]
        print(json.dumps(rows, indent=1))
        return
    console().print(store_table(found, used))
    notes(said)


@app.command()
def du(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Sizes by kind, of checkpoints and unfinished stages, and of the clip cache."""
    from stagedkd.report.housekeeping import size_of, sizes_table
    from stagedkd.store.maintenance import artifacts, folder_size, leftovers

    runtime, kept = _store(store)
    sizes, counts = Counter[str](), Counter[str]()
    for entry in artifacts(kept):
        sizes[entry.kind] += entry.size
        counts[entry.kind] += 1
    for entry in leftovers(kept):
        name = "unfinished stages" if entry.part == "attempt" else "trash"
        sizes[name] += entry.size
        counts[name] += 1
    cache = runtime.folder("cache")
    sizes["clip cache"] = folder_size(cache)
    counts["clip cache"] = sum(1 for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else 0
    if as_json:
        print(json.dumps({name: {"bytes": sizes[name], "count": counts[name]} for name in sizes}, indent=1))
        return
    console().print(sizes_table(sizes, counts))
    say([f"{size_of(sum(sizes.values()))} in all; store: {kept.root}; cache: {cache}"])


@app.command()
def verify(store: StoreDir = None) -> None:
    """Hold every file of every artifact against its manifest."""
    from stagedkd.store.maintenance import artifacts, problems

    _, kept = _store(store)
    found = artifacts(kept)
    broken = {entry.folder: wrong for entry in found if (wrong := problems(entry.folder))}
    if broken:
        rows = "\n".join(f"  {folder.name}: {fault}" for folder, wrong in broken.items() for fault in wrong)
        hint = f"remove their folders in {kept.root} and run again: they will be rebuilt"
        raise StoreError(f"{len(broken)} of {len(found)} artifacts are broken:\n{rows}", hint=hint)
    say([f"{len(found)} artifacts are whole"])


@app.command()
def why(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its beginning is enough.", show_default=False)],
    specs: Specs = None,
    store: StoreDir = None,
) -> None:
    """Say what made an artifact, and why it is not what a spec wants; or why a stage of a spec is a miss."""
    from stagedkd.report.housekeeping import against_lines, artifact_lines
    from stagedkd.store.maintenance import find, users

    runtime, kept = _store(store)
    plans, said = _plans(specs, runtime, strict=bool(specs))
    found = find(kept, key)
    if found is not None:
        from stagedkd.store.store import Artifact

        entry, manifest = found
        say(artifact_lines(manifest, Artifact(entry.folder, manifest).run, users(plans).get(manifest.key, [])))
        if specs:
            say(against_lines(manifest, plans))
    elif not _why_missing(key, plans, kept):
        hint = "stagedkd store ls and stagedkd plan SPEC list keys"
        raise UsageError(f"neither the store nor a spec has a key that starts with {key}", hint=hint)
    notes(said if found is None else ())


def _why_missing(key: str, plans: dict[str, Plans], kept: Store) -> bool:
    """Say of each spec's stage with this key why the store lacks it."""
    from stagedkd.store.why import why_miss

    stored, seen = list(kept.manifests()), set[str]()
    for name, made in plans.items():
        for plan in made.cells.values():
            for stage in plan.stages:
                fits = stage.key is not None and stage.key.is_meant(key, stage.work.kind)
                if fits and stage.identity not in seen:
                    seen.add(stage.identity)
                    state = kept.state(stage)
                    say([f"{stage.folder}, {stage.name} of {name}: {state}: {why_miss(plan, stage, stored)}"])
    return bool(seen)


@app.command()
def gc(
    specs: Specs = None,
    store: StoreDir = None,
    runs: Annotated[int, typer.Option("--runs", min=0, help="Keep what so many last runs need.")] = 5,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what neither the specs, nor dvc.lock, nor the last runs, nor a run at work need. Asks first."""
    from stagedkd.report.housekeeping import size_of, store_table
    from stagedkd.store.maintenance import delete, dvc_outs, remove_stale, unreferenced, users
    from stagedkd.store.records import records

    runtime, kept = _store(store)
    plans, said = _plans(specs, runtime, strict=True)
    known = records(kept.root)
    found = unreferenced(kept, users(plans), dvc_outs(Path(runtime.root) / "dvc.lock"), runs)
    notes(said)
    if not found:
        if not dry:
            remove_stale(kept)
        say(["nothing to delete: all that is here is needed"])
        return
    console().print(store_table(found, {}))
    total = f"{len(found)} of them, {size_of(sum(entry.size for entry in found))}"
    if dry:
        say([f"would delete {total}"])
        return
    if not yes and not _agreed(f"delete {total}?"):
        say(["nothing was deleted"])
        return
    gone = list(delete(kept, found, known, lambda text: notes([text])))
    remove_stale(kept)
    say([f"deleted {len(gone)}, {size_of(sum(entry.size for entry in gone))}"])


def reproduce(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A results folder, an artifact's folder, or a student.safetensors.",
            show_default=False,
        ),
    ],
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="A new folder to rebuild in, that is kept; else a temporary one."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Rebuild a result from its manifest alone in a clean store, and compare all files bit for bit."""
    from stagedkd.experiment.reproduce import reproduce as rebuild
    from stagedkd.report.housekeeping import rebuilt_lines

    runtime, kept = _store(None, data_dir=data_dir, device=device, threads=threads)
    if store is not None and store.exists() and (not store.is_dir() or any(store.iterdir())):
        raise UsageError(f"{store} is there already", hint="name a new folder")
    import tempfile

    with tempfile.TemporaryDirectory() if store is None else nullcontext(str(store)) as folder, progress() as shown:
        found = rebuild(what, kept, runtime, Path(folder).resolve(), shown, requested=(device, threads))
    if found.differs:
        hint = "" if found.environment == () else "the same bits need the same environment"
        raise TrainingError("\n".join(rebuilt_lines(found)), hint=hint)
    say(rebuilt_lines(found))


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise UsageError("nobody answers: nothing was deleted", hint="--yes, or --dry-run") from None


def _store(
    store: Path | None, *, data_dir: Path | None = None, device: str | None = None, threads: int | None = None
) -> tuple[Runtime, Store]:
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.spec.load import specs_root
    from stagedkd.store.store import Store

    root = specs_root(Path.cwd() / "any.yaml")
    runtime = load_runtime(root, store=store, data_dir=data_dir, device=device, threads=threads)
    return runtime, Store(runtime.folder("store"), runtime.lease_seconds)


def _plans(specs: list[Path] | None, runtime: Runtime, *, strict: bool) -> tuple[dict[str, Plans], list[str]]:
    """The plans of specs by name, and what is to be said about them. A spec that cannot be read is an error under
    `strict`, else a note."""
    from stagedkd.plan.compile import compile_experiment
    from stagedkd.plan.lock import read_lock
    from stagedkd.spec.inherit import METHOD
    from stagedkd.spec.load import load_experiment
    from stagedkd.spec.yaml import read_yaml

    lock, said = read_lock(runtime.lock_path), list[str]()
    found: dict[str, Plans] = {}
    for path in specs or _default_specs(Path(runtime.root)):
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        try:
            if not specs and set(read_yaml(path).map) <= METHOD:
                continue  # a recipe of one's own
            made = compile_experiment(load_experiment(path), lock)
        except StagedkdError as error:
            if strict:
                raise
            said.append(f"{path} is not read: {error.message.splitlines()[0]}")
            continue
        if any(stage.key is None for stage in made.unique.values()):
            said.append(f"{path} has stages whose keys wait for stagedkd.lock: no artifact is known as theirs")
        found[made.name if made.name not in found else path.as_posix()] = made
    return found, said


def _default_specs(root: Path) -> list[Path]:
    """All below specs/, and those that params.yaml names for DVC, wherever they lie."""
    from stagedkd.plan.runtime import load_tracked

    tracked = load_tracked(root)
    named = [root / path for path in tracked.specs] if tracked else []
    return sorted({*(root / "specs").rglob("*.y*ml"), *named})
