"""The store: `<kind>-<key12>/files/` (deterministic) beside `run.json` and `events.jsonl` (what happened).

An artifact is written in a folder of its own below `.work/`, its manifest last, and renamed into place: it is there
whole or not at all, and the first one stays. Who makes it holds the lease of its key (leases.py). His folder bears the
token of his lease: who takes over renames it first, so that a holder who comes back has lost all that he knew by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stagedkd.errors import Interrupted, StoreError
from stagedkd.files import files_below
from stagedkd.plan.graph import Stage
from stagedkd.plan.key import Key
from stagedkd.store import leases
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import Manifest, file_digest
from stagedkd.store.records import record

MANIFEST = "manifest.json"
WORK, LEASES, TRASH = ".work", ".leases", ".trash"
RUN = "run-"  # leases of whole runs are called so, with their marks
KEPT = (".pt", ".npy")  # what an interrupted stage goes on from: checkpoints, and trainings of its that are done


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    folder: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """A file of the artifact, its digest checked.

        Raises:
            StoreError: missing, or not what was published.
        """
        path, expected = self.folder / "files" / name, self.manifest.files.get(name)
        if expected is None or not path.is_file():
            raise StoreError(f"{path} is missing", hint=self._mend())
        if file_digest(path) != expected:
            raise StoreError(
                f"{path} is not what was published: its SHA-256 differs from the manifest", hint=self._mend()
            )
        return path

    def verify(self) -> None:
        """Check every file. Raises StoreError naming the first that is wrong."""
        for name in self.manifest.files:
            self.file(name)

    @property
    def run(self) -> dict[str, Any] | None:
        """`run.json`: device, threads, seconds; None where only the deterministic part is here (after `dvc pull`)."""
        path = self.folder / "run.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    @property
    def events(self) -> Path:
        """The event file, which may be absent."""
        return self.folder / "events.jsonl"

    def _mend(self) -> str:
        return f"remove {self.folder} and run again: it will be rebuilt"


@dataclass(frozen=True)
class Workspace:
    """A stage in the making: `files` for the artifact, `scratch` for checkpoints and events, kept after a kill."""

    files: Path
    scratch: Path


class Store:
    """All artifacts below one folder. A holder of a stage who gives no sign of life for `lease_seconds` is dead."""

    def __init__(self, root: Path, lease_seconds: float = leases.SECONDS) -> None:
        self.root, self.lease_seconds = root, lease_seconds

    def artifact(self, stage: Stage) -> Artifact:
        """The published artifact of a stage.

        Raises:
            StoreError: there is none, or its manifest is not one of this key.
        """
        folder = self.root / stage.folder
        try:
            manifest = Manifest.model_validate_json((folder / "files" / MANIFEST).read_bytes(), strict=False)
        except FileNotFoundError:
            raise StoreError(f"{folder} is missing", hint="stagedkd run SPEC makes it") from None
        except (ValidationError, ValueError):
            hint = f"remove {folder} and run again"
            raise StoreError(f"{folder / 'files' / MANIFEST} is not a manifest", hint=hint) from None
        if manifest.key != stage.key:
            hint = f"remove {folder} and run again"
            raise StoreError(f"{folder} holds key {manifest.key[:16]}, not {str(stage.key)[:16]}", hint=hint)
        return Artifact(folder, manifest)

    def state(self, stage: Stage) -> Literal["hit", "resumable", "miss", "unlocked"]:
        """Where a stage stands. A folder without manifest counts as a miss; a broken one is met when it is read."""
        if stage.key is None:
            return "unlocked"
        if (self.root / stage.folder / "files" / MANIFEST).is_file():
            return "hit"
        return "resumable" if any(map(unfinished, self._attempts(stage))) else "miss"

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest in the store."""
        for path in sorted(self.root.glob(f"*/files/{MANIFEST}")):
            try:
                yield Manifest.model_validate_json(path.read_bytes(), strict=False)
            except (ValidationError, OSError):
                continue

    @contextmanager
    def at_work(self, name: str, keys: Iterable[str]) -> Generator[str]:
        """Within, a run is at work that needs the stages of these keys, and gc leaves them. Gives the run's mark.

        Raises:
            StoreError: the store cannot be written.
        """
        try:
            mark = f"{record(self.root, name, keys)}-{os.urandom(8).hex()}"
            lease = leases.acquire(self.root / LEASES / f"{RUN}{mark}", self.lease_seconds)
        except OSError as error:
            raise _refused(self.root, error) from error
        try:
            yield mark
        finally:
            lease.end()

    def active(self) -> tuple[set[str], set[Key]]:
        """What is at work: the marks of runs, and the keys of stages (12 digits where a manifest could not be read)."""
        names = [name for name, _ in leases.active(self.root / LEASES)]
        runs = {name.removeprefix(RUN) for name in names if name.startswith(RUN)}
        return runs, {Key(Key.parse(name)[1]) for name in names if not name.startswith(RUN)}

    @contextmanager
    def held(
        self, stage: Stage, waiting: Callable[[], None], check: Callable[[], None] = lambda: None
    ) -> Generator[Lease]:
        """Hold the lease of a stage's key; `waiting` is called once if another run has it, `check` while it has, to
        raise where the wait should end.

        Raises:
            StoreError: another run took the stage over, since no sign of life came from this one.
        """
        place = self.root / LEASES / f"{stage.work.kind}-{stage.key}"
        try:
            lease = leases.acquire(place, self.lease_seconds, waiting, check)
        except OSError as error:
            raise _refused(self.root, error) from error
        try:
            self.refresh_listing()
            yield lease
        except Interrupted:
            raise
        except Exception as error:
            if not lease.renew():  # whatever failed, failed for that
                try:
                    lease.require()
                except StoreError as lost:
                    raise lost from error
            raise
        finally:
            lease.end()

    def refresh_listing(self) -> None:
        """Make a network file system look anew at what others made meanwhile."""
        with os.scandir(self.root) as names:
            next(names, None)

    def open(self, stage: Stage, lease: Lease) -> Workspace:
        """The workspace of a stage that is about to run: that of an earlier attempt, of which checkpoints and events
        are kept, or a new one."""
        scratch = self.root / WORK / f"{stage.work.kind}-{stage.key}.{lease.owner.token}"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        lease.require()
        earlier = sorted(self._attempts(stage), key=_kept_at)
        if earlier:
            earlier.pop().rename(scratch)
        for folder in earlier:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(scratch / "artifact", ignore_errors=True)
        for half in [*scratch.rglob("*.tmp"), *scratch.rglob("*.part")]:
            half.unlink()  # not to be written over: who left it may have it open, and come back
        files = scratch / "artifact" / "files"
        files.mkdir(parents=True)
        return Workspace(files, scratch)

    def publish(
        self, stage: Stage, workspace: Workspace, manifest: Manifest, run: Mapping[str, Any], lease: Lease
    ) -> Artifact:
        """Write run.json and, last, the manifest; flush all to disk; rename into place. First one wins.

        Raises:
            StoreError: the lease is lost; nothing is published.
        """
        root, folder = workspace.files.parent, self.root / stage.folder
        names = sorted(p.relative_to(workspace.files).as_posix() for p in workspace.files.rglob("*") if p.is_file())
        digests = {name: file_digest(workspace.files / name) for name in names}
        manifest = manifest.model_copy(update={"files": digests})
        _write(root / "run.json", json.dumps(dict(run), indent=1, sort_keys=True) + "\n")
        if (workspace.scratch / "events.jsonl").exists():
            shutil.copyfile(workspace.scratch / "events.jsonl", root / "events.jsonl")
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        _write(workspace.files / MANIFEST, text + "\n")
        for path in root.rglob("*"):
            _flush(path)
        lease.require()
        self._clear_remains(folder)
        try:
            root.rename(folder)
            _flush(self.root)
        except OSError as error:
            if error.errno not in leases.TAKEN:
                raise
        shutil.rmtree(workspace.scratch, ignore_errors=True)
        return self.artifact(stage)

    def discard(self, folder: Path) -> None:
        """Remove a folder of the store. It is renamed first: a kill leaves nothing that looks like an artifact."""
        trash = self.root / TRASH
        trash.mkdir(exist_ok=True)
        away = trash / f"{folder.name}-{os.urandom(8).hex()}"
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)  # another clean-up may be at it, too

    def _clear_remains(self, folder: Path) -> None:
        """Make room where somebody's clean-up left a folder that is no artifact."""
        if not folder.exists() or (folder / "files" / MANIFEST).exists():
            return
        away = self.root / TRASH / f"{folder.name}-{os.urandom(8).hex()}"
        away.parent.mkdir(exist_ok=True)
        folder.rename(away)
        if (away / "files" / MANIFEST).exists():  # published by another just now
            with suppress(OSError):
                away.rename(folder)
        shutil.rmtree(away, ignore_errors=True)

    def _attempts(self, stage: Stage) -> list[Path]:
        """What attempts at a stage left below `.work/`, or have there now."""
        return list((self.root / WORK).glob(f"{stage.work.kind}-{stage.key}*"))


def _kept_at(folder: Path) -> float:
    """When the last checkpoint was written, in seconds since 1970; 0: there is none."""
    times: list[float] = [0.0]
    for path in files_below(folder):
        if path.suffix in KEPT:
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
    return max(times)


def unfinished(scratch: Path) -> bool:
    """Whether an interrupted stage left something to go on from."""
    return _kept_at(scratch) > 0


def _refused(root: Path, error: OSError) -> StoreError:
    hint = "free some space, or mend its rights, or name another folder by --store; the same command goes on"
    return StoreError(f"cannot write in the store {root}: {error}", hint=hint)


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _flush(path: Path) -> None:
    """fsync a file or folder, so that the rename cannot come before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
