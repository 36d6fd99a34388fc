"""`manifest.json`: what an artifact is, which inputs it was made of, and the digests of its files. It holds no times
and nothing else that changes from run to run.

The file is a record (`files.py`): it has a digest of its own, metrics included. What uses an artifact notes its content
digest, so that a manifest that was written anew is found, too (docs/decisions/0028-digests-of-manifests.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from stagedkd.files import json_digest, read_record, record_text
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.lock import Lock, data_id, weights_id
from stagedkd.plan.work import Work
from stagedkd.spec.schema import Section


class Upstream(Section):
    """One stage of the closure: its work, and the keys of its inputs by name. The whole closure can be rebuilt from the
    manifest alone."""

    work: Work
    needs: Mapping[str, Key]


class Manifest(Section):
    """The content of manifest.json.

    Attributes:
        format: the version of this file format.
        closure: this stage and all stages upstream of it, by key.
        lock: the entries of stagedkd.lock that the closure depends on.
        files: the SHA-256 of each file of the artifact other than this one.
        metrics: what the stage measured.
        inputs: the content digests of all stages upstream, as this one found them; {} before it is published, and in
            manifests of earlier versions.
    """

    format: int = 1
    key: Key
    kind: str
    closure: Mapping[Key, Upstream]
    lock: Lock
    files: Mapping[str, str] = Field(default_factory=dict[str, str])
    metrics: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    inputs: Mapping[Key, str] = Field(default_factory=dict[Key, str])

    @classmethod
    def parse(cls, content: bytes) -> tuple[Self, bool]:
        """Read the content of a manifest.json. Returns the manifest, and whether it had a digest: those of earlier
        versions have none.

        Raises:
            DamagedError: it is not what was written. ValidationError: it is no manifest.
        """
        values, has_digest = read_record(content)
        return cls.model_validate_json(json.dumps(values), strict=False), has_digest

    @property
    def text(self) -> str:
        """The content of the file, with its digest."""
        return record_text(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values. Without inputs they are those of earlier versions, since the files of networks hold
        them, whose bytes must not change."""
        return self.model_dump(mode="json", exclude=None if self.inputs else {"inputs"})

    @property
    def content_digest(self) -> str:
        """The SHA-256 over key, files and metrics, which later versions of this file leave as it is."""
        return json_digest(self.model_dump(mode="json", include={"key", "files", "metrics"}))

    @property
    def work(self) -> Work:
        """The work of this stage."""
        return self.closure[self.key].work

    @property
    def folder(self) -> str:
        """The name of the artifact's folder in the store."""
        return self.key.folder(self.kind)

    @property
    def needs(self) -> Mapping[str, Key]:
        """The keys of the stage's inputs, by the inputs' names."""
        return self.closure[self.key].needs


def manifest_of(plan: Graph, stage: Stage) -> Manifest:
    """The manifest of a stage before it runs: without files and metrics. The stage must have a key, so its data and
    weights must be in the lock."""
    closure: dict[Key, Upstream] = {}
    lock = Lock()
    for member in plan.closure(stage):
        keys = {label: plan.stage(name).key for label, name in member.needs.items()}
        assert member.key is not None
        closure[member.key] = Upstream(work=member.work, needs={label: key for label, key in keys.items() if key})
        if member.work.data_set is not None:
            name = data_id(member.work.data_set)
            if name and name in plan.lock.data:  # the fingerprint stands for the list of files, which is left out
                lock = lock.with_data(name, plan.lock.data[name].model_copy(update={"files": {}}))
        for arch, weights in member.work.weight_files:
            assert weights.sha256 is not None
            lock = lock.with_weights(weights_id(weights.name, arch), weights.sha256)
    assert stage.key is not None
    return Manifest(key=stage.key, kind=stage.work.kind, closure=closure, lock=lock)


def upstream_digests(inputs: Sequence[Manifest]) -> dict[Key, str]:
    """Return the content digests of inputs and of all that they were made of, by key."""
    digests: dict[Key, str] = {}
    for manifest in inputs:
        digests = {**manifest.inputs, **digests}
    return digests | {manifest.key: manifest.content_digest for manifest in inputs}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
