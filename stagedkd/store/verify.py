"""Check everything in a store that has a digest. Runs and clean-ups may work beside it: what they change while it is
read is read again, and what they remove is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from stagedkd.files import DamagedError, files_below, read_record, unsealed
from stagedkd.store.maintenance import artifacts, closure_problems, leftovers, manifest_at
from stagedkd.store.manifest import Manifest, file_digest
from stagedkd.store.records import RUNS, is_whole
from stagedkd.store.runlog import EVENTS, read_events, read_run_log
from stagedkd.store.store import KEPT, MANIFEST, Store

AGAIN = 3  # times that a folder is read again which changes while it is read


@dataclass(frozen=True)
class Verified:
    """What a check of a store found.

    Attributes:
        artifacts: their number. broken: what is wrong, by the artifact's folder; such an artifact is not used.
        damaged: other files, with what is wrong: each costs what it holds, and nothing else.
        without_digest: the names of artifacts whose manifest an earlier version wrote, without a digest.
    """

    artifacts: int
    broken: Mapping[str, tuple[str, ...]]
    damaged: tuple[str, ...]
    without_digest: tuple[str, ...]


def verify(store: Store) -> Verified:
    """Check all artifacts with their run logs, the checkpoints of unfinished stages, and the records of runs."""
    names = [entry.folder.name for entry in artifacts(store)]
    broken: dict[str, tuple[str, ...]] = {}
    damaged, without_digest, readable = list[str](), list[str](), list[str]()
    for name in names:
        problems, manifest, has_digest = _settled(store.root / name, _problems)
        if problems:
            broken[name] = tuple(problems)
        if manifest is not None:
            readable.append(name)
            without_digest += [] if has_digest else [name]
        damaged += _settled(store.root / name, lambda folder: (list(read_run_log(folder).damage), None, True))[0]
    for name in readable:
        if others := _other_inputs(store, name):
            broken[name] = (*broken.get(name, ()), *others)
    damaged += [*_damaged_attempts(store), *_damaged_records(store)]
    return Verified(len(names), broken, tuple(damaged), tuple(without_digest))


_Found = tuple[list[str], Manifest | None, bool]  # problems, the manifest if it can be read, whether it has a digest


def _settled(folder: Path, check: Callable[[Path], _Found]) -> _Found:
    """Check a folder that a run or a clean-up may remove or make anew meanwhile: then what was found does not count."""
    found: _Found = ([], None, True)
    for _ in range(AGAIN):
        before = _identity(folder)
        if before is None:
            return [], None, True
        try:
            found = check(folder)
        except FileNotFoundError as error:
            found = ([f"{error.filename} is missing"], None, True)
        if not found[0] or _identity(folder) == before:
            return found
    return found


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of its name; None if it does not exist."""
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_ctime_ns


def _problems(folder: Path) -> _Found:
    """Check an artifact's manifest, its key and each of its files."""
    files = folder / "files"
    try:
        manifest, has_digest = Manifest.parse((files / MANIFEST).read_bytes())
    except (FileNotFoundError, DamagedError, ValidationError, ValueError):
        return [str(manifest_at(folder))], None, True
    messages: list[str] = []
    if folder.name != manifest.folder:
        messages.append(f"{MANIFEST} belongs to {manifest.folder}")
    messages += [f"{MANIFEST}: {problem}" for problem in closure_problems(manifest)]
    names = {path.relative_to(files).as_posix() for path in files_below(files)} - {MANIFEST}
    for name, digest in sorted(manifest.files.items()):
        if name not in names:
            messages.append(f"{name} is missing")
        elif file_digest(files / name) != digest:
            messages.append(f"{name} is not what was published: its SHA-256 differs from the manifest")
    messages += [f"{name} is not in the manifest" for name in sorted(names - manifest.files.keys())]
    return messages, manifest, has_digest


def _other_inputs(store: Store, name: str) -> list[str]:
    """Compare the inputs of an artifact, as it noted them, with those that the store has now."""
    manifest = manifest_at(store.root / name)
    if isinstance(manifest, str):
        return []
    lines: list[str] = []
    for key, digest in manifest.inputs.items():
        above = manifest_at(store.root / key.folder(manifest.closure[key].work.kind))
        if isinstance(above, Manifest) and above.content_digest != digest:
            now = f"which was changed or made anew ({digest[:12]} then, {above.content_digest[:12]} now)"
            lines.append(f"it was made of {above.folder}, {now}")
    return lines


def _damaged_attempts(store: Store) -> Iterator[str]:
    """Check the checkpoints, scores and events of unfinished stages that no run is making now."""
    _, active = store.active()
    for entry in leftovers(store):
        if entry.part != "attempt" or entry.key in active:
            continue
        for path in files_below(entry.folder):
            if "artifact" in path.relative_to(entry.folder).parts:
                continue  # what the next run makes anew
            try:
                _check(path)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                yield f"{path} {error}"


def _check(path: Path) -> None:
    """Check one file of an unfinished stage. Raises DamagedError, FileNotFoundError."""
    if path.suffix in KEPT:
        unsealed(path.read_bytes())
    elif path.name == EVENTS:
        whole, _, _ = path.read_bytes().rpartition(b"\n")  # a kill may have cut the last line
        if lost := read_events(whole)[1]:
            raise DamagedError(f"is damaged in {len(lost)} lines, from line {lost[0]}")
    elif path.suffix == ".json":
        read_record(path.read_bytes())


def _damaged_records(store: Store) -> Iterator[str]:
    for path in sorted((store.root / RUNS).glob("*.json")):
        try:
            whole = is_whole(path, path.read_bytes())
        except FileNotFoundError:
            continue
        if not whole:
            yield f"{path} is damaged: it is not what was written"
