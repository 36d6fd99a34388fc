"""`stagedkd reproduce`: from the manifest of a result to the same result in another store, without its spec."""

# pyright: reportUnknownVariableType=false
# The type stubs of safetensors are incomplete.
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from stagedkd.data.fingerprint import HashMemo, fingerprint, require_equal
from stagedkd.errors import LockError, StoreError, UsageError
from stagedkd.experiment.compare import compare_artifacts, compare_files
from stagedkd.experiment.run import run_graph
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.lock import Lock, data_id, read_lock
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import PrepareWork, Work
from stagedkd.spec.schema import Architecture, Clip, FileLoss, Videos
from stagedkd.spec.schema.networks.base import UserFiles
from stagedkd.stages.context import Listener
from stagedkd.stages.provenance import describe_environments, differences
from stagedkd.stages.weights import weights_file
from stagedkd.store.maintenance import closure_problems, manifest_at
from stagedkd.store.manifest import Manifest, Upstream, file_digest
from stagedkd.store.rebuilt import Rebuilt
from stagedkd.store.records import records
from stagedkd.store.store import MANIFEST, Artifact, Store


@dataclass(frozen=True)
class Sought:
    """What is to be rebuilt: its manifests; the store where originals may be; a file that is to be compared alone."""

    manifests: tuple[Manifest, ...]
    originals: Store
    whole: bool = True
    file: Path | None = None


def reproduce(
    what: Path,
    original: Store,
    runtime: Runtime,
    root: Path,
    listener: Listener,
    given: tuple[str | None, int | None] = (None, None),
) -> Rebuilt:
    """Rebuild a result from its manifests alone and compare it with what is there, bit for bit.

    Args:
        what: a results folder, the folder of an artifact, or a .safetensors file of ours.
        original: the project's store, for what `what` leaves out: other stages and their run.json.
        root: the store to build in, which is empty.
        given: device and threads that the user wants; without them the original's, as far as run.json has them.
    Raises:
        UsageError: `what` is none of these, or own code is missing. LockError: data or weights are not those.
        StoreError: a manifest is none, or not of this version. TrainingError: a stage failed.
    """
    sought = seek(what, original)
    graph = graph_of(sought.manifests)
    there = {stage.name: _run_of(sought.originals.root / stage.folder) for stage in graph.stages}
    graph = require_inputs(graph, runtime)
    runtime = runtime.model_copy(update={"store": str(root)})
    runtimes = {stage.identity: as_there(stage, runtime, there[stage.name], given) for stage in graph.stages}
    made = run_graph(graph, runtime, listener, runtimes)
    compared: dict[str, tuple[str, ...]] = {}
    wanted = {m.folder for m in sought.manifests} if sought.whole else set[str]()
    for name, artifact in made.items():
        folder = sought.originals.root / name
        if (folder / "files").is_dir():
            compared[name] = tuple(compare_artifacts(folder, artifact.folder))
        elif name in wanted:
            raise StoreError(f"{folder} is gone")
    if sought.file is not None:
        compared[str(sought.file)] = tuple(_compare_file(sought.file, made))
    bare = tuple(name for name in made if name not in compared)
    return Rebuilt(tuple(made), compared, bare, environment_of(there, {name: made[name].run for name in there}))


def environment_of(
    there: Mapping[str, dict[str, Any] | None], here: Mapping[str, dict[str, Any] | None]
) -> tuple[str, ...] | None:
    """What differs in what bits may hang on, or is not known, between two sets of run.json by stage; None where there
    is none of the first."""
    if all(run is None for run in there.values()):
        return None
    found: list[str] = []
    for name, old in there.items():
        if old is None:
            found.append(f"{name}: unknown there, which lacks its run.json")
            continue
        new = here[name] or {}
        found += differences(old, new)
        for which, run in (("original", old), ("rebuilt", new)):
            if describe_environments(run):
                found.append(f"the {which} {name} was made in pieces: {describe_environments(run)}")
    return tuple(dict.fromkeys(found))


def seek(what: Path, original: Store) -> Sought:
    """Find the manifests of a results folder, an artifact or a file of weights; each key must be that of its work."""
    if what.is_file():
        found = Sought((manifest_in(what),), original, whole=False, file=what)
    elif (what / "files").is_dir() or (what / MANIFEST).is_file():
        folder = (what if (what / "files").is_dir() else what.parent).resolve()
        manifest = manifest_at(folder)
        if isinstance(manifest, str):
            hint = "another version of stagedkd may have made it: use that one"
            raise StoreError(f"{folder}: {manifest}", hint=hint)
        if folder.name != manifest.folder:
            raise UsageError(f"{folder} is not called {manifest.folder}", hint="name it so")
        found = Sought((manifest,), Store(folder.parent))
    else:
        found = _seek_run(what, original)
    for manifest in found.manifests:
        wrong = closure_problems(manifest)
        if wrong:
            hint = "it was changed, or made by another version of stagedkd: use that one"
            raise StoreError(f"the manifest of {manifest.folder}: {wrong[0]}", hint=hint)
    return found


def _seek_run(what: Path, original: Store) -> Sought:
    """A results folder: the last run of its name that made the student in it, as far as the store has what it made;
    else that student alone."""
    student = what / "student.safetensors"
    wanted = {manifest_in(student).key} if student.is_file() else set[str]()
    named = (run for run in records(original.root) if run.name == what.resolve().name)
    run = next((run for run in named if wanted <= set(run.keys)), None)
    if what.is_dir() and run is not None:
        there = {m.key: m for m in original.manifests() if m.key in run.keys}
        inner = {key for m in there.values() for key in m.closure if key != m.key}
        if there.keys() == set(run.keys):
            ends = tuple(m for key, m in sorted(there.items()) if key not in inner)
            return Sought(ends, original, file=student if student.is_file() else None)
    if student.is_file():
        return Sought((manifest_in(student),), original, whole=False, file=student)
    if not what.exists():
        raise UsageError(f"there is no {what}")
    hint = "a results folder, a folder of the store, or a student.safetensors"
    raise UsageError(f"{what} is no result whose manifests are here", hint=hint)


def manifest_in(path: Path) -> Manifest:
    """The manifest in a safetensors file of ours. Raises StoreError: there is none, or not of this version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as weights:
            metadata: dict[str, str] = cast(Any, weights).metadata() or {}
            text = metadata.get("stagedkd")
    except SafetensorError as error:
        raise StoreError(f"{path} is no safetensors file: {error}") from None
    if text is None:
        raise StoreError(f"{path} has no manifest of stagedkd in its metadata")
    try:
        return Manifest.model_validate_json(text, strict=False)
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"]))
        hint = "it was made by another version of stagedkd: use that one"
        raise StoreError(f"the manifest in {path} cannot be read (at {at})", hint=hint) from None


def graph_of(manifests: Iterable[Manifest]) -> Graph:
    """The stages of all closures, each after those that it needs, under their names in the store."""
    closure: dict[Key, Upstream] = {}
    lock = Lock()
    for manifest in manifests:
        closure |= manifest.closure
        lock = Lock(data={**lock.data, **manifest.lock.data}, weights={**lock.weights, **manifest.lock.weights})
    stages: dict[Key, Stage] = {}

    def name(key: Key) -> str:
        return key.folder(closure[key].work.kind)

    def add(key: Key) -> None:
        for above in closure[key].needs.values():
            if above not in stages:
                add(above)
        needs = {given: name(above) for given, above in closure[key].needs.items()}
        stages[key] = Stage(name(key), closure[key].work, needs, key)

    for key in sorted(closure):
        if key not in stages:
            add(key)
    works = [stage.work for stage in stages.values()]
    return Graph("reproduced", lock, tuple(stages.values()), _clip(works))


def _clip(works: list[Work]) -> Clip:
    """How videos are read: torchcodec goes without a cache; the pixels are the same with one and without."""
    clip = next((w.view for w in works if w.view is not None), Clip(cache="none"))
    readings = [w.reading.decoder for w in works if isinstance(w, PrepareWork) and w.reading is not None]
    if "torchcodec" in readings:
        return clip.model_copy(update={"cache": "none", "decoder": "torchcodec"})
    return clip


def require_inputs(graph: Graph, runtime: Runtime) -> Graph:
    """Hold own code, data and weights against the digests in the works.

    Returns:
        the graph with the files of its data sets in its lock, which manifests leave out.
    Raises:
        UsageError: something is missing. LockError: it is another.
    """
    lock, root = graph.lock, Path(runtime.root)
    for stage in graph.stages:
        for section in _sections(stage.work):
            _require_own(section, root)
        for arch, weights in stage.work.weight_files:
            if file_digest(weights_file(weights.name, arch, runtime)) != weights.sha256:
                raise LockError(f"the weights {weights.name} are not those that this was made of")
        if isinstance(stage.work, PrepareWork) and isinstance(stage.work.data, Videos):
            lock = _with_files(lock, stage.work.data, str(stage.work.fingerprint), runtime)
    return Graph(graph.name, lock, graph.stages, graph.clip)


def _sections(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(cast("Mapping[Any, Any]", value).values())
    for item in cast("list[Any] | tuple[Any, ...]", value) if isinstance(value, list | tuple) else ():
        yield from _sections(item)


def _require_own(section: BaseModel, root: Path) -> None:
    """Own code and model folders, by their digests."""
    if isinstance(section, FileLoss):
        _require_code(UserFiles(section.path, section.digest, code=True), root)
    if not isinstance(section, Architecture) or section.user_files is None:
        return
    files = section.user_files
    if files.code:
        _require_code(files, root)
        return
    values = section.model_dump(exclude={"digest"})
    _, fault, hint = section.put_digest(values, root, lambda file: file_digest(file) if file.is_file() else None)
    if fault or values.get("digest") != files.digest:
        raise LockError(fault or f"the model {files.path} is not the one that this was made of", hint=hint)


def _require_code(files: UserFiles, root: Path) -> None:
    """The user's code at `files.path`, inside the project and by its digest."""
    path = (root / files.path).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UsageError(f"{files.path} is outside the project's folder {root}: it is not run")
    if not path.is_file():
        raise UsageError(f"your own code {files.path} is not here", hint=f"put it at {path}")
    if file_digest(path) != files.digest:
        hint = f"restore the file whose SHA-256 starts with {files.digest[:16]}"
        raise LockError(f"{files.path} is not the file that this was made of", hint=hint)


def _with_files(lock: Lock, data: Videos, expected: str, runtime: Runtime) -> Lock:
    name = str(data_id(data))
    found = fingerprint(data, runtime.folder("data_dir"), HashMemo(runtime.folder("cache") / "hashes.json"))
    if found.fingerprint != expected:
        locked = read_lock(runtime.lock_path).data.get(name)
        if locked is not None and locked.fingerprint == expected:
            require_equal(name, locked, found)
        marks = f"fingerprint {expected[:12]} there, {found.fingerprint[:12]} here"
        raise LockError(f"the data of {name} are not those that this was made of ({marks})", hint="restore them")
    return lock.with_data(name, found)


def _run_of(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def as_there(
    stage: Stage, runtime: Runtime, there: dict[str, Any] | None, given: tuple[str | None, int | None]
) -> Runtime:
    """The runtime with the original's device, threads, processes and compile flag, as far as they are known, possible
    here and not given; one process where their number is not possible."""
    from stagedkd.launch.torchrun import check_ranks
    from stagedkd.stages.networks import device_of

    update: dict[str, Any] = {}
    if there and given[1] is None and there.get("threads"):
        update["threads"] = there["threads"]
    if there and there.get("compile") is not None:
        update["compile"] = there["compile"]
    if there and given[0] is None and there.get("device"):
        try:
            device_of(there["device"])
            update["device"] = there["device"]
        except UsageError:
            pass  # the report says so
    several = {"gpus": there["gpus"]} if there and there.get("gpus") else {}
    try:
        check_ranks([stage], runtime.model_copy(update=update | several))
    except UsageError:
        several = {"gpus": 1}
    return runtime.model_copy(update=update | several)


def _compare_file(path: Path, made: Mapping[str, Artifact]) -> list[str]:
    from stagedkd.stages.networks import network_file

    manifest = manifest_in(path)
    twin = made[manifest.folder].file(network_file(manifest.work))
    return compare_files(path.name, path, twin)
