"""Maintenance of a store: list what it holds and which specs use it, verify it, and delete what nothing needs."""

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
from stagedkd.files import DamagedError, files_below
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import FOLDER_FORM, NO_KEY, WHOLE_FORM, Key, stage_key
from stagedkd.plan.kind import KIND_FORM
from stagedkd.spec.yaml import LOADER
from stagedkd.store import leases
from stagedkd.store.manifest import Manifest
from stagedkd.store.records import RUNS, Record, records
from stagedkd.store.store import LEASES, LISTS, MANIFEST, TRASH, WORK, Store

FOLDER = re.compile(FOLDER_FORM)  # the folder of an artifact
ATTEMPT = re.compile(rf"{KIND_FORM}-{WHOLE_FORM}(\..*)?")
DVC_OUT = re.compile(rf"(?:^|/)({FOLDER_FORM})/files/?$")


@dataclass(frozen=True)
class Entry:
    """A folder of the store. `part` is "" for an artifact, "attempt" for the work folder of a stage, and "trash" for
    what an interrupted clean-up left. `key` is "" if the manifest cannot be read. `size` is in bytes, `age` in seconds
    since the last change of a file."""

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
        """The first 12 digits of the key, or as many as are known."""
        return self.key.short or Key(Key.parse(self.folder.name)[1]).short


def age_text(seconds: float) -> str:
    """Return a number of seconds as a short text, such as 40 s, 3 min, 5 h or 12 d."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def artifacts(store: Store) -> list[Entry]:
    """Every artifact, also a broken one, sorted by kind and key."""
    entries: list[Entry] = []
    for folder in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        if FOLDER.fullmatch(folder.name) and folder.is_dir():
            manifest = manifest_at(folder)
            key = manifest.key if isinstance(manifest, Manifest) else NO_KEY
            entries.append(_entry(folder, Key.parse(folder.name)[0], key))
    return entries


def leftovers(store: Store) -> list[Entry]:
    """The work folders of stages, with their checkpoints, and what interrupted clean-ups left."""
    entries: list[Entry] = []
    for folder in sorted((store.root / WORK).glob("*-*")):
        if ATTEMPT.fullmatch(folder.name):
            kind, rest = Key.parse(folder.name)
            entries.append(_entry(folder, kind, Key(rest.partition(".")[0]), "attempt"))
    entries += [_entry(folder, Key.parse(folder.name)[0], NO_KEY, "trash") for folder in store.run_folders()]
    return entries + [_entry(folder, "trash", NO_KEY, "trash") for folder in sorted((store.root / TRASH).glob("*"))]


def _entry(folder: Path, kind: str, key: Key, part: str = "") -> Entry:
    """Measure a folder's size and age."""
    size, newest = 0, 0.0
    for path in files_below(folder):
        try:
            stat = path.stat()
        except FileNotFoundError:  # a run is changing the folder just now
            continue
        size, newest = size + stat.st_size, max(newest, stat.st_mtime)
    return Entry(folder, kind, key, size, max(0.0, time.time() - newest) if newest else 0.0, part)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if the folder does not exist."""
    return _entry(folder, "", NO_KEY).size


def manifest_at(folder: Path) -> Manifest | str:
    """The manifest of an artifact's folder, or what is wrong with it."""
    try:
        return Manifest.parse((folder / "files" / MANIFEST).read_bytes())[0]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except DamagedError as error:
        return f"{MANIFEST} {error}"
    except (ValidationError, ValueError) as error:
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        return f"{MANIFEST} cannot be read" + (f" (at {'.'.join(map(str, where))})" if where else "")


def closure_problems(manifest: Manifest) -> list[str]:
    """Check the closure of a manifest: every stage must have the key of its work and inputs, and every input must be in
    the closure, and be one that the work has. Returns one message for each problem."""
    messages: list[str] = []
    for key, stage in manifest.closure.items():
        missing = sorted(set(stage.needs.values()) - manifest.closure.keys())
        if missing:
            messages.append(f"{stage.work.kind} {key.short} needs {missing[0].short}, which is missing")
        elif stage_key(stage.work, stage.needs) != key:
            messages.append(f"{stage.work.kind} {key.short} is not the key of the work that it names")
        else:
            kinds = {name: manifest.closure[above].work.kind for name, above in stage.needs.items()}
            allowed = {**dict.fromkeys(kinds, ()), **stage.work.inputs}
            wrong = [name for name, of in allowed.items() if kinds.get(name, "") not in of]
            messages += [
                f"{stage.work.kind} {key.short}: its input {name[:40]!r} is {kinds.get(name, 'missing')}"
                for name in wrong[:1]
            ]
    if manifest.key not in manifest.closure:
        messages.append(f"key {manifest.key.short} is not in the closure")
    elif manifest.kind != manifest.work.kind:
        messages.append(f"the kind is {manifest.kind[:40]!r}, and that of its work {manifest.work.kind}")
    return messages


def users(plans: Mapping[str, Plans]) -> dict[Key, list[str]]:
    """The names of the specs that use each stage, by the stage's key."""
    specs: dict[Key, list[str]] = {}
    for name, experiment in plans.items():
        for stage in experiment.unique.values():
            if stage.key is not None:
                specs.setdefault(stage.key, []).append(name)
    return specs


def find(store: Store, text: str) -> tuple[Entry, Manifest] | None:
    """Find the artifact whose key, or `<kind>-<key>`, starts with `text`. Returns None if there is none.

    Raises:
        StoreError: several artifacts match.
    """
    matches = [
        (entry, manifest)
        for entry in artifacts(store)
        if isinstance(manifest := manifest_at(entry.folder), Manifest) and manifest.key.is_meant(text, manifest.kind)
    ]
    if len(matches) > 1:
        names = ", ".join(entry.name for entry, _ in matches[:5])
        message = f"{len(matches)} artifacts have keys that start with {text}: {names}"
        raise StoreError(message, hint="type more digits of the key")
    return matches[0] if matches else None


def dvc_outs(lock: Path) -> set[str]:
    """The names (`<kind>-<key12>`) of the artifacts that are outs in a dvc.lock; none if the file does not exist.

    Raises:
        StoreError: the file cannot be read.
    """
    if not lock.exists():
        return set()
    try:
        values: Any = yaml.load(lock.read_bytes(), Loader=LOADER)
        stages: Iterable[Any] = values["stages"].values()
        outs = [str(out["path"]) for stage in stages for out in stage.get("outs") or ()]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        hint = "restore it first: the artifacts that it names must be kept"
        raise StoreError(f"{lock} cannot be read: {str(error).splitlines()[0]}", hint=hint) from None
    return {match[1] for out in outs if (match := DVC_OUT.search(out))}


def unreferenced(store: Store, needed: Iterable[Key], dvc: set[str], runs: int) -> list[Entry]:
    """Find everything in the store that nothing needs.

    Needed are: the stages with the keys `needed`, the outs of dvc.lock (`dvc`), the stages of the last `runs` runs and
    of every run that holds a lease, and the inputs of each of these, direct and indirect. A checkpoint is needed as
    long as its stage is, and its artifact does not exist yet.

    Raises:
        StoreError: the record of a run cannot be read.
    """
    names = {key.short for key in needed} | {Key.parse(name)[1] for name in dvc}  # first 12 digits of keys
    marks, active = store.active()
    running = {mark.partition("-")[0] for mark in marks}
    counted = 0
    for run in records(store.root, strict=True):
        if (run.name and counted < runs) or run.mark in running or active & set(run.keys):
            names |= {key.short for key in run.keys}
        counted += bool(run.name)
    names |= {key.short for key in active}
    entries = artifacts(store)
    for entry in entries:
        manifest = manifest_at(entry.folder)
        if Key.parse(entry.folder.name)[1] in names and isinstance(manifest, Manifest):
            names |= {key.short for key in manifest.closure}
    referenced = {entry.folder.name for entry in entries if Key.parse(entry.folder.name)[1] in names}
    finished = {entry.key for entry in entries if entry.folder.name in referenced and entry.key}
    removable = [entry for entry in entries if entry.folder.name not in referenced]
    for entry in leftovers(store):
        needed_attempt = entry.key.short in names and entry.key not in finished
        if entry.part == "trash" or (entry.key not in active and not needed_attempt):
            removable.append(entry)
    return removable


def delete(
    store: Store, entries: Iterable[Entry], known: Collection[Record], note: Callable[[str], None]
) -> Iterator[Entry]:
    """Delete entries one by one, and yield each that was deleted. An entry stays if a run holds it, or if a run needs
    it that is not among the `known` ones since it was started later; `note` gets a message for each that stays.

    Raises:
        StoreError: the record of a run cannot be read.
    """
    for entry in entries:
        if entry.part == "trash":
            shutil.rmtree(entry.folder, ignore_errors=True)
            yield entry
            continue
        key12 = entry.short
        if any(
            key.startswith(key12) for run in records(store.root, strict=True) if run not in known for key in run.keys
        ):
            note(f"{entry.name} stays: a run that has just started needs it")
            continue
        # of a broken artifact only 12 digits of the key are known, so its lease cannot be asked for by name
        active = any(key.startswith(key12) for key in store.active()[1])
        lease = None if active else leases.try_acquire(store.root / LEASES / f"{entry.kind}-{entry.key or key12}")
        if lease is None:
            note(f"{entry.name} stays: a run holds it")
            continue
        try:
            rebuilt = not entry.part and not entry.key and isinstance(manifest_at(entry.folder), Manifest)
            if entry.folder.exists() and not rebuilt:
                store.discard(entry.folder)
        finally:
            lease.end()
        if rebuilt:
            note(f"{entry.name} stays: a run has just rebuilt it")
        else:
            yield entry


def remove_stale(store: Store) -> None:
    """Remove what dead processes left: leases, claims to leases, records of runs that have no results, and, if no run
    is active, lists of files."""
    leases.clear(store.root / LEASES)
    running = {mark.partition("-")[0] for mark in store.active()[0]}
    if not running:
        shutil.rmtree(store.root / LISTS, ignore_errors=True)
    for run in records(store.root):
        if not run.name and run.mark not in running:
            (store.root / RUNS / f"{run.mark}.json").unlink(missing_ok=True)
