"""`manifest.json`: what an artifact is, of what it was made, and the digests of its files. Nothing volatile."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.lock import Lock, data_id, weights_id
from stagedkd.plan.work import Work
from stagedkd.spec.schema import Section


class Upstream(Section):
    """One stage of the closure: its work and the keys it needs, so that all can be rebuilt from here."""

    work: Work
    needs: Mapping[str, Key]


class Manifest(Section):
    """`closure` maps key to stage, this stage included; `lock` holds the entries that the closure rests on;
    `files` maps each other file of the artifact to its SHA-256; `metrics` are the stage's own figures."""

    format: int = 1
    key: Key
    kind: str
    closure: Mapping[Key, Upstream]
    lock: Lock
    files: Mapping[str, str] = Field(default_factory=dict[str, str])
    metrics: Mapping[str, Any] = Field(default_factory=dict[str, Any])

    @property
    def work(self) -> Work:
        """The stage's own work."""
        return self.closure[self.key].work

    @property
    def folder(self) -> str:
        """Folder of the artifact in the store."""
        return self.key.folder(self.kind)

    @property
    def needs(self) -> Mapping[str, Key]:
        """Keys of the stage's inputs by their names."""
        return self.closure[self.key].needs


def manifest_of(plan: Graph, stage: Stage) -> Manifest:
    """The manifest of a stage before it has run: no files, no metrics. The stage must be locked."""
    closure: dict[Key, Upstream] = {}
    lock = Lock()
    for part in plan.closure(stage):
        keys = {given: plan.stage(name).key for given, name in part.needs.items()}
        assert part.key is not None
        closure[part.key] = Upstream(work=part.work, needs={given: key for given, key in keys.items() if key})
        if part.work.data_set is not None:
            name = data_id(part.work.data_set)
            if name and name in plan.lock.data:  # the list of files stays in the lock; the fingerprint speaks for it
                lock = lock.with_data(name, plan.lock.data[name].model_copy(update={"files": {}}))
        for arch, weights in part.work.weight_files:
            assert weights.sha256 is not None
            lock = lock.with_weights(weights_id(weights.name, arch), weights.sha256)
    assert stage.key is not None
    return Manifest(key=stage.key, kind=stage.work.kind, closure=closure, lock=lock)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
