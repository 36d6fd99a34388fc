"""The store: one folder `<kind>-<key12>/` for each artifact.

`files/` in it is deterministic; `run.json` and `events.jsonl` beside it tell how this run went. An artifact is written
below `.work/`, its manifest last, and then renamed into place. So it is whole or absent, and the first one published
stays.

The process that makes an artifact holds the lease of its key (leases.py). The name of its work folder ends with the
token of that lease. After a takeover, the new holder first renames the work folder. If the old holder wakes up, it
finds none of the paths that it knows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stagedkd.errors import Advice, Interrupted, StoreError, remedy
from stagedkd.files import DamagedError, FileBytes, files_below, flush, naming, record_text
from stagedkd.plan.graph import Stage
from stagedkd.plan.key import Key
from stagedkd.store import leases
from stagedkd.store.leases import Lease
from stagedkd.store.manifest import Manifest, file_digest
from stagedkd.store.records import record
from stagedkd.store.runlog import EVENTS, RUN_FACTS, RunLog, read_run_log

MANIFEST = "manifest.json"
WORK, LEASES, TRASH = ".work", ".leases", ".trash"
LISTS = ".lists"  # the files of data sets, as requests to other processes name them (launch/protocol.py)
RUN_FOLDERS = ("jobs", "parsl", "rehearsal")  # kinds of folders in .work that whole runs make; the run's mark follows
RUN = "run-"  # begins the names of leases of whole runs; the run's mark follows
KEPT = (".pt", ".npy")  # sealed files from which a stage resumes: checkpoints, and results of finished trainings


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    folder: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file of the artifact, after checking its digest.

        Raises:
            StoreError: the file is missing, or its content is not what was published.
        """
        path, expected = self._file(name)
        if file_digest(path) != expected:
            raise self._changed(path)
        return path

    def read(self, name: str) -> bytes:
        """The content of a file of the artifact: exactly the bytes that were published.

        Raises:
            StoreError: the file is missing, or its content is not what was published.
        """
        path, expected = self._file(name)
        file = FileBytes.read(path)
        if file.digest != expected:
            raise self._changed(path)
        return file.content

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the artifact. Raises what `read` raises."""
        return json.loads(self.read(name))

    def _file(self, name: str) -> tuple[Path, str]:
        """The path and the digest of a file. Raises StoreError: it is missing."""
        path, expected = self.folder / "files" / name, self.manifest.files.get(name)
        if expected is None or not path.is_file():
            raise StoreError(f"{path} is missing", hint=self._hint())
        return path, expected

    def _changed(self, path: Path) -> StoreError:
        what = f"{path} is not what was published: its SHA-256 differs from the manifest"
        return StoreError(what, hint=self._hint())

    def verify(self) -> None:
        """Check every file. Raises StoreError for the first that is wrong."""
        for name in self.manifest.files:
            self.file(name)

    @cached_property
    def log(self) -> RunLog:
        """The facts of `run.json` and the events of `events.jsonl`. Damage costs no more than what is damaged."""
        return read_run_log(self.folder)

    @property
    def run(self) -> dict[str, Any] | None:
        """The content of `run.json`: device, threads, seconds and more. None if it does not exist (`dvc pull` brings
        only `files/`) or is damaged."""
        return self.log.run

    def _hint(self) -> str:
        return f"remove {self.folder} and run again: it is rebuilt"


@dataclass(frozen=True)
class Workspace:
    """The folders of a stage that is running: `files` for the artifact's files; `scratch` for checkpoints and events,
    which stay after a kill."""

    files: Path
    scratch: Path


class Store:
    """All artifacts below the folder `root`. A run that has sent no heartbeat for `lease_seconds` counts as dead."""

    def __init__(self, root: Path, lease_seconds: float = leases.SECONDS) -> None:
        self.root, self.lease_seconds = root, lease_seconds

    def artifact(self, stage: Stage) -> Artifact:
        """The published artifact of a stage.

        Raises:
            StoreError: it does not exist, or its manifest cannot be read or has another key.
        """
        folder = self.root / stage.folder
        try:
            manifest, _ = Manifest.parse((folder / "files" / MANIFEST).read_bytes())
        except FileNotFoundError:
            what = f"{folder} is missing" if stage.key else "stagedkd.lock lacks data or weights of the spec"
            raise StoreError(f"{stage.name} has not run: {what}", hint=Advice("run", "run")) from None
        except DamagedError as error:
            hint = f"remove {folder} and run again: it is rebuilt"
            raise StoreError(f"{folder / 'files' / MANIFEST} {error}", hint=hint) from None
        except (ValidationError, ValueError):
            hint = f"remove {folder} and run again"
            raise StoreError(f"{folder / 'files' / MANIFEST} is not a manifest", hint=hint) from None
        if manifest.key != stage.key:
            hint = f"remove {folder} and run again"
            raise StoreError(f"{folder} holds key {manifest.key[:16]}, not {str(stage.key)[:16]}", hint=hint)
        return Artifact(folder, manifest)

    def state(self, stage: Stage) -> Literal["hit", "resumable", "miss", "unlocked"]:
        """Whether a stage's artifact exists, or else a checkpoint to resume from. A folder without a manifest is a
        miss. A manifest that cannot be read is a hit here; `artifact` raises an error for it."""
        if stage.key is None:
            return "unlocked"
        if (self.root / stage.folder / "files" / MANIFEST).is_file():
            return "hit"
        return "resumable" if any(map(unfinished, self._attempts(stage))) else "miss"

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest in the store."""
        for path in sorted(self.root.glob(f"*/files/{MANIFEST}")):
            try:
                yield Manifest.parse(path.read_bytes())[0]
            except (DamagedError, ValidationError, OSError):
                continue

    @contextmanager
    def at_work(self, name: str, keys: Iterable[str]) -> Generator[str]:
        """Register a run while the context is open, so that gc deletes no stage of these keys. Yields the run's mark.
        At the end, folders go that killed runs of the same name and keys have left, work folders of finished stages,
        and leases of all killed runs on this machine.

        Args:
            name: of the run's results; "" if it has none.
            keys: of all stages that the run needs.
        Raises:
            StoreError: the store cannot be written.
        """
        needed = set(keys)
        try:
            mark = f"{record(self.root, name, needed)}-{os.urandom(8).hex()}"
            lease = leases.acquire(self.root / LEASES / f"{RUN}{mark}", self.lease_seconds)
        except OSError as error:
            raise _write_error(self.root, error) from error
        try:
            yield mark
            for folder in self.run_folders(mark.partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)
            self._remove_finished(needed)
            leases.clear(self.root / LEASES, RUN, ended=True)
        finally:
            lease.end()

    def _remove_finished(self, keys: Collection[str]) -> None:
        """Remove the work folders of stages that the store has: of a process that was killed after it published."""
        for folder in (self.root / WORK).glob("*-*"):
            kind, rest = Key.parse(folder.name)
            key = Key(rest.partition(".")[0])
            if key in keys and (self.root / key.folder(kind) / "files" / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)

    def run_folders(self, mark: str = "") -> list[Path]:
        """The folders in .work of whole runs that have ended; `mark`: the first part of the marks of these runs."""
        folders = [path for kind in RUN_FOLDERS for path in (self.root / WORK).glob(f"{kind}-{mark}*")]
        runs = self.active()[0] if folders else set[str]()
        return sorted(path for path in folders if Key.parse(path.name)[1] not in runs)

    def active(self) -> tuple[set[str], set[Key]]:
        """The marks of the running runs, and the keys of the stages whose leases are held. An artifact whose manifest
        cannot be read is held under the first 12 digits of its key."""
        names = [name for name, _ in leases.active(self.root / LEASES)]
        runs = {name.removeprefix(RUN) for name in names if name.startswith(RUN)}
        return runs, {Key(Key.parse(name)[1]) for name in names if not name.startswith(RUN)}

    @contextmanager
    def held(
        self,
        stage: Stage,
        waiting: Callable[[], None],
        check: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Generator[Lease]:
        """Hold the lease of a stage's key while the context is open.

        Args:
            waiting: called once if another run holds the lease.
            check: called again and again during the wait; an error that it raises ends the wait.
            note: called with what is odd about the other run's lease.
        Raises:
            StoreError: another run took the stage over, since this one gave no sign of life.
        """
        folder = self.root / LEASES / f"{stage.work.kind}-{stage.key}"
        try:
            lease = leases.acquire(folder, self.lease_seconds, waiting, check, note)
        except OSError as error:
            raise _write_error(self.root, error) from error
        try:
            self.refresh_listing()
            yield lease
        except Interrupted:
            raise
        except Exception as error:
            if not lease.renew():  # the lost lease is the cause of any error
                try:
                    lease.require()
                except StoreError as lost:
                    raise lost from error
            raise
        finally:
            lease.end()

    def refresh_listing(self) -> None:
        """Read the store's listing again, so that a network file system shows what other hosts have made."""
        with os.scandir(self.root) as names:
            next(names, None)

    def open(self, stage: Stage, lease: Lease) -> Workspace:
        """Open the workspace of a stage that is about to run. Takes over the workspace of the latest attempt, with its
        checkpoints and events, or makes a new one."""
        scratch = self.root / WORK / f"{stage.work.kind}-{stage.key}.{lease.owner.token}"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        lease.require()
        attempts = sorted(self._attempts(stage), key=_last_checkpoint)
        if attempts:
            attempts.pop().rename(scratch)
        for folder in attempts:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(scratch / "artifact", ignore_errors=True)
        for partial in [*scratch.rglob("*.tmp"), *scratch.rglob("*.part")]:
            partial.unlink()  # never overwrite it: the earlier holder may still have it open, and wake up
        files = scratch / "artifact" / "files"
        files.mkdir(parents=True)
        return Workspace(files, scratch)

    def publish(
        self, stage: Stage, workspace: Workspace, manifest: Manifest, run: Mapping[str, Any], lease: Lease
    ) -> Artifact:
        """Write run.json and, last, the manifest; flush all to disk; rename the folder into place. If the artifact
        exists already, it stays.

        Raises:
            StoreError: the lease is lost; nothing is published.
        """
        root, folder = workspace.files.parent, self.root / stage.folder
        names = sorted(p.relative_to(workspace.files).as_posix() for p in workspace.files.rglob("*") if p.is_file())
        digests = {name: file_digest(workspace.files / name) for name in names}
        manifest = manifest.model_copy(update={"files": digests})
        if (workspace.scratch / EVENTS).exists():
            shutil.copyfile(workspace.scratch / EVENTS, root / EVENTS)
            run = {**run, EVENTS: file_digest(root / EVENTS)}
        _write(root / RUN_FACTS, record_text(run))
        _write(workspace.files / MANIFEST, manifest.text)
        for path in (*root.rglob("*"), root):
            flush(path)
        lease.require()
        self._remove_remains(folder)
        try:
            root.rename(folder)
            flush(self.root)
        except OSError as error:
            if error.errno not in leases.NOT_EMPTY:
                raise
        shutil.rmtree(workspace.scratch, ignore_errors=True)
        return self.artifact(stage)

    def discard(self, folder: Path) -> None:
        """Remove a folder of the store. It is renamed first, so that a kill leaves nothing that looks like an
        artifact."""
        trash = self.root / TRASH
        trash.mkdir(exist_ok=True)
        away = trash / f"{folder.name}-{os.urandom(8).hex()}"
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)  # another clean-up may remove it at the same time

    def _remove_remains(self, folder: Path) -> None:
        """Remove a folder that has the artifact's name but no manifest, as an interrupted clean-up leaves it."""
        if not folder.exists() or (folder / "files" / MANIFEST).exists():
            return
        away = self.root / TRASH / f"{folder.name}-{os.urandom(8).hex()}"
        away.parent.mkdir(exist_ok=True)
        folder.rename(away)
        if (away / "files" / MANIFEST).exists():  # another run has published it just now
            with suppress(OSError):
                away.rename(folder)
        shutil.rmtree(away, ignore_errors=True)

    def _attempts(self, stage: Stage) -> list[Path]:
        """The work folders of all attempts at a stage, earlier ones and the present one."""
        return list((self.root / WORK).glob(f"{stage.work.kind}-{stage.key}*"))


def _last_checkpoint(folder: Path) -> float:
    """The time when the last checkpoint was written, in seconds since 1970; 0 if there is none."""
    times: list[float] = [0.0]
    for path in files_below(folder):
        if path.suffix in KEPT:
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
    return max(times)


def unfinished(scratch: Path) -> bool:
    """Whether an interrupted stage left a checkpoint to resume from."""
    return _last_checkpoint(scratch) > 0


def _write_error(root: Path, error: OSError) -> StoreError:
    hint = f"{remedy(error)}, or choose another folder with --store; then run it again"
    return StoreError(f"cannot write to the store {root}: {error}", hint=hint)


def _write(path: Path, text: str) -> None:
    with naming(path):
        path.write_text(text, "utf-8")
