"""Looking after a store: what it holds and for whom, whether it is whole, and what may go."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stagedkd.errors import StoreError
from stagedkd.files import files_below
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import FOLDER_FORM, NO_KEY, WHOLE_FORM, Key, stage_key
from stagedkd.plan.work import KIND_FORM
from stagedkd.spec.yaml import LOADER
from stagedkd.store import leases
from stagedkd.store.manifest import Manifest, file_digest
from stagedkd.store.records import RUNS, Record, records
from stagedkd.store.store import LEASES, MANIFEST, TRASH, WORK, Store

FOLDER = re.compile(FOLDER_FORM)  # of an artifact
ATTEMPT = re.compile(rf"{KIND_FORM}-{WHOLE_FORM}(\..*)?")
DVC_OUT = re.compile(rf"(?:^|/)({FOLDER_FORM})/files/?$")


@dataclass(frozen=True)
class Entry:
    """A folder of the store: an artifact (`key` "" where its manifest cannot be read), or, with `part`, something else
    that takes room: an attempt at a stage, or what a killed clean-up left. `size` in bytes, `age` in seconds."""

    folder: Path
    kind: str
    key: Key
    size: int
    age: float
    part: str = ""

    @property
    def name(self) -> str:
        """`<kind>-<key12>`."""
        return self.key.folder(self.kind) if self.part and self.key else self.folder.name

    @property
    def short(self) -> str:
        """The first digits of the key, as far as they are known: at most 12."""
        return self.key.short or Key(Key.parse(self.folder.name)[1]).short


def artifacts(store: Store) -> list[Entry]:
    """Every artifact, also a broken one, by kind and key."""
    found: list[Entry] = []
    for folder in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        if FOLDER.fullmatch(folder.name) and folder.is_dir():
            manifest = manifest_at(folder)
            key = manifest.key if isinstance(manifest, Manifest) else NO_KEY
            found.append(_entry(folder, Key.parse(folder.name)[0], key))
    return found


def leftovers(store: Store) -> list[Entry]:
    """Attempts at stages, with their checkpoints, and what killed clean-ups left."""
    found: list[Entry] = []
    runs, _ = store.active()
    for folder in sorted((store.root / WORK).glob("*-*")):
        kind, rest = Key.parse(folder.name)
        if ATTEMPT.fullmatch(folder.name):
            found.append(_entry(folder, kind, Key(rest.partition(".")[0]), "attempt"))
        elif kind == "parsl" and rest not in runs:
            found.append(_entry(folder, kind, NO_KEY, "trash"))
    return found + [_entry(folder, "trash", NO_KEY, "trash") for folder in sorted((store.root / TRASH).glob("*"))]


def _entry(folder: Path, kind: str, key: Key, part: str = "") -> Entry:
    size, newest = 0, 0.0
    for path in files_below(folder):
        try:
            stat = path.stat()
        except FileNotFoundError:  # somebody is at work in there
            continue
        size, newest = size + stat.st_size, max(newest, stat.st_mtime)
    return Entry(folder, kind, key, size, max(0.0, time.time() - newest) if newest else 0.0, part)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return _entry(folder, "", NO_KEY).size


def manifest_at(folder: Path) -> Manifest | str:
    """The manifest of an artifact's folder, or what is wrong with it."""
    try:
        return Manifest.model_validate_json((folder / "files" / MANIFEST).read_bytes(), strict=False)
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (ValidationError, ValueError) as error:
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        return f"{MANIFEST} cannot be read" + (f" (at {'.'.join(map(str, where))})" if where else "")


def problems(folder: Path) -> list[str]:
    """What is wrong with an artifact: its manifest, its key, each of its files; nothing where it is whole."""
    manifest = manifest_at(folder)
    if isinstance(manifest, str):
        return [manifest]
    found: list[str] = []
    if folder.name != manifest.folder:
        found.append(f"{MANIFEST} is that of {manifest.folder}")
    found += [f"{MANIFEST}: {fault}" for fault in closure_problems(manifest)]
    files = folder / "files"
    there = {path.relative_to(files).as_posix() for path in files_below(files)} - {MANIFEST}
    for name, digest in sorted(manifest.files.items()):
        if name not in there:
            found.append(f"{name} is missing")
        elif file_digest(files / name) != digest:
            found.append(f"{name} is not what was published: its SHA-256 differs from the manifest")
    return found + [f"{name} is not in the manifest" for name in sorted(there - manifest.files.keys())]


def closure_problems(manifest: Manifest) -> list[str]:
    """Stages of the closure whose key is not that of their work and inputs, or whose inputs are not there."""
    found: list[str] = []
    for key, stage in manifest.closure.items():
        missing = sorted(set(stage.needs.values()) - manifest.closure.keys())
        if missing:
            found.append(f"{stage.work.kind} {key.short} needs {missing[0].short}, which is not there")
        elif stage_key(stage.work, stage.needs) != key:
            found.append(f"{stage.work.kind} {key.short} is not the key of the work that it names")
    return found if manifest.key in manifest.closure else [*found, f"key {manifest.key.short} is not in the closure"]


def users(plans: Mapping[str, Plans]) -> dict[Key, list[str]]:
    """Which specs, by name, use a stage, by key."""
    found: dict[Key, list[str]] = {}
    for name, made in plans.items():
        for stage in made.unique.values():
            if stage.key is not None:
                found.setdefault(stage.key, []).append(name)
    return found


def find(store: Store, text: str) -> tuple[Entry, Manifest] | None:
    """The artifact whose key, or `<kind>-<key>`, starts with `text`; None where there is none.

    Raises:
        StoreError: several do.
    """
    found = [
        (e, m)
        for e in artifacts(store)
        if isinstance(m := manifest_at(e.folder), Manifest) and m.key.is_meant(text, m.kind)
    ]
    if len(found) > 1:
        names = ", ".join(entry.name for entry, _ in found[:5])
        raise StoreError(f"{len(found)} artifacts start with {text}: {names}", hint="give more of the key")
    return found[0] if found else None


def dvc_outs(lock: Path) -> set[str]:
    """The names (`<kind>-<key12>`) of the artifacts that are outs in a dvc.lock; none where there is no such file.

    Raises:
        StoreError: it cannot be read.
    """
    if not lock.is_file():
        return set()
    try:
        values: Any = yaml.load(lock.read_bytes(), Loader=LOADER)
        stages: Iterable[Any] = values["stages"].values()
        outs = [str(out["path"]) for stage in stages for out in stage.get("outs") or ()]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        hint = "restore it: what it names must be kept"
        raise StoreError(f"{lock} cannot be read: {str(error).splitlines()[0]}", hint=hint) from None
    return {match[1] for out in outs if (match := DVC_OUT.search(out))}


def unreferenced(store: Store, needed: Iterable[Key], dvc: set[str], runs: int) -> list[Entry]:
    """What may go: all that is needed neither by the stages of these keys, nor by dvc.lock's outs, nor by the last
    `runs` runs, nor by a run that holds a lease. What an artifact was made of is needed with it."""
    names = {key.short for key in needed} | {Key.parse(name)[1] for name in dvc}
    marks, held = store.active()
    at_work = {mark.partition("-")[0] for mark in marks}
    counted = 0
    for run in records(store.root):
        if (run.name and counted < runs) or run.mark in at_work or held & set(run.keys):
            names |= {key.short for key in run.keys}
        counted += bool(run.name)
    names |= {key.short for key in held}
    there = artifacts(store)
    for entry in there:
        manifest = manifest_at(entry.folder)
        if Key.parse(entry.folder.name)[1] in names and isinstance(manifest, Manifest):
            names |= {key.short for key in manifest.closure}
    kept = {entry.folder.name for entry in there if Key.parse(entry.folder.name)[1] in names}
    made = {entry.key for entry in there if entry.folder.name in kept and entry.key}
    found = [entry for entry in there if entry.folder.name not in kept]
    for entry in leftovers(store):
        wanted = entry.key.short in names and entry.key not in made
        if entry.part == "trash" or (entry.key not in held and not wanted):
            found.append(entry)
    return found


def delete(
    store: Store, entries: Iterable[Entry], known: Collection[Record], told: Callable[[str], None]
) -> Iterator[Entry]:
    """Remove entries one by one, giving each that is gone. What a run needs that is not among the `known` ones, since
    it was started later, stays, and so does what somebody holds."""
    for entry in entries:
        if entry.part == "trash":
            shutil.rmtree(entry.folder, ignore_errors=True)
            yield entry
            continue
        key12 = entry.short
        if any(key.startswith(key12) for run in records(store.root) if run not in known for key in run.keys):
            told(f"{entry.name} stays: a run that has just started needs it")
            continue
        held = any(key.startswith(key12) for key in store.active()[1])  # of a broken artifact we know 12 digits
        lease = None if held else leases.try_acquire(store.root / LEASES / f"{entry.kind}-{entry.key or key12}")
        if lease is None:
            told(f"{entry.name} stays: a run holds it")
            continue
        try:
            mended = not entry.part and not entry.key and isinstance(manifest_at(entry.folder), Manifest)
            if entry.folder.exists() and not mended:
                store.discard(entry.folder)
        finally:
            lease.end()
        if mended:
            told(f"{entry.name} stays: it was made anew just now")
        else:
            yield entry


def remove_stale(store: Store) -> None:
    """Remove what dead holders left: leases, claims, and records of runs that have no results."""
    leases.clear(store.root / LEASES)
    at_work = {mark.partition("-")[0] for mark in store.active()[0]}
    for run in records(store.root):
        if not run.name and run.mark not in at_work:
            (store.root / RUNS / f"{run.mark}.json").unlink(missing_ok=True)
