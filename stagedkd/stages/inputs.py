"""The inputs of a stage are the same from its first step, over all stops, to its publication.

A file of the user is compared with the key where it is read (store/pinned.py), and an artifact's file with its manifest
(`Artifact.read`). What remains are manifests, which could be replaced while a stage is stopped or running, and videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stagedkd.data.fingerprint import HashMemo, fingerprint, require_equal
from stagedkd.errors import StoreError, TrainingError
from stagedkd.files import DamagedError, read_record, record_text, write_whole
from stagedkd.plan.lock import data_id
from stagedkd.plan.work import PrepareWork
from stagedkd.spec.schema import Videos
from stagedkd.stages.context import Context
from stagedkd.store.maintenance import manifest_at
from stagedkd.store.manifest import Manifest
from stagedkd.store.store import Artifact, unfinished

INPUTS = "inputs.json"  # in the scratch folder: the content digests of the inputs, by the inputs' names


def note_inputs(scratch: Path, inputs: Mapping[str, Artifact]) -> None:
    """Note the inputs of a stage that begins, and compare those of one that resumes.

    Raises:
        TrainingError: it was begun with other inputs, or it is not known with which.
    """
    path, now = scratch / INPUTS, {name: artifact.manifest.content_digest for name, artifact in inputs.items()}
    if path.exists() and unfinished(scratch):
        hint = f"remove {scratch} to make this stage from the start"
        try:
            before, _ = read_record(path.read_bytes())
        except DamagedError as error:
            raise TrainingError(f"{path} {error}", hint=hint) from None
        changed = [name for name, digest in now.items() if before.get(name) != digest]
        if changed:
            folder = inputs[changed[0]].folder
            raise TrainingError(f"this stage was begun with another {changed[0]} than {folder} is now", hint=hint)
    write_whole(path, record_text(now))


def require_unchanged(context: Context) -> None:
    """Compare the inputs of a stage that has run with those on the disk: manifests, and the videos that it read itself.

    Raises:
        StoreError: an artifact was replaced while the stage ran. LockError: videos were changed. The stage must not be
            published.
    """
    for name, artifact in context.inputs.items():
        manifest = manifest_at(artifact.folder)  # a missing or damaged one is for those who read it next
        if isinstance(manifest, Manifest) and manifest.content_digest != artifact.manifest.content_digest:
            message = f"stage {context.stage.name}: its {name} {artifact.folder} was replaced while the stage ran"
            raise StoreError(f"{message}; nothing is published", hint="run the same command again")
    if context.rehearsals is None:
        _require_videos(context)


def _require_videos(context: Context) -> None:
    """Compare the videos of a stage that reads them itself with the lock. The clip cache is one stage's work, and
    compares each file when it decodes it."""
    inputs = [context.manifest, *(artifact.manifest for artifact in context.inputs.values())]
    works = [m.work for m in inputs if isinstance(m.work, PrepareWork)]
    if not works or (works[0] is not context.stage.work and context.plan.clip.cache != "none"):
        return
    data = works[0].data
    if isinstance(data, Videos):
        runtime, name = context.runtime, str(data_id(data))
        memo = HashMemo(runtime.folder("cache") / "hashes.json")
        require_equal(name, context.plan.lock.data[name], fingerprint(data, runtime.folder("data_dir"), memo))
