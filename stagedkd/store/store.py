"""The store: `<kind>-<key12>/files/` (deterministic) beside `run.json` and `events.jsonl` (what happened).

An artifact is written in a folder of its own below `.work/`, its manifest last, and renamed into place: it is there
whole or not at all. Who makes it holds the lock of its key.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from stagedkd.errors import StoreError
from stagedkd.plan.graph import Stage
from stagedkd.store.manifest import Manifest, file_digest

MANIFEST = "manifest.json"
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
    """All artifacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        return "resumable" if unfinished(self._scratch(stage)) else "miss"

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest in the store."""
        for path in sorted(self.root.glob(f"*/files/{MANIFEST}")):
            try:
                yield Manifest.model_validate_json(path.read_bytes(), strict=False)
            except (ValidationError, OSError):
                continue

    @contextmanager
    def held(self, stage: Stage, waiting: Callable[[], None]) -> Generator[None]:
        """Hold the lock of a stage's key; `waiting` is called once if another process has it."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{stage.key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def open(self, stage: Stage) -> Workspace:
        """The workspace of a stage that is about to run; what an earlier attempt left in `files` goes."""
        scratch = self._scratch(stage)
        files = scratch / "artifact" / "files"
        shutil.rmtree(scratch / "artifact", ignore_errors=True)
        files.mkdir(parents=True)
        return Workspace(files, scratch)

    def publish(self, stage: Stage, workspace: Workspace, manifest: Manifest, run: Mapping[str, Any]) -> Artifact:
        """Write run.json and, last, the manifest; flush all to disk; rename into place. First one wins."""
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
        if folder.exists() and not (folder / "files" / MANIFEST).exists():
            shutil.rmtree(folder)  # the remains of somebody's clean-up, no artifact
        if not folder.exists():
            root.rename(folder)
            _flush(self.root)
        shutil.rmtree(workspace.scratch, ignore_errors=True)
        return self.artifact(stage)

    def _scratch(self, stage: Stage) -> Path:
        return self.root / ".work" / f"{stage.work.kind}-{stage.key}"


def unfinished(scratch: Path) -> bool:
    """Whether an interrupted stage left something to go on from."""
    return any(path.suffix in KEPT for path in scratch.rglob("*"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _flush(path: Path) -> None:
    """fsync a file or folder, so that the rename cannot come before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
