"""`stagedkd reproduce`: rebuild a result from its manifest in another store, without its spec."""

# pyright: reportUnknownVariableType=false
# The type stubs of safetensors are incomplete.
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from stagedkd.data.fingerprint import HashMemo, fingerprint, require_equal
from stagedkd.errors import LockError, StoreError, UsageError
from stagedkd.experiment.compare import compare_artifacts, compare_files
from stagedkd.experiment.run import run_graph
from stagedkd.files import write_whole
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.lock import Lock, data_id, read_lock
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import PrepareWork, Work
from stagedkd.spec.own_files import OwnFiles
from stagedkd.spec.schema import Architecture, Clip, FileLoss, Videos
from stagedkd.spec.schema.losses.clipwise import WeightFile
from stagedkd.spec.schema.networks.base import UserFiles
from stagedkd.stages.context import Listener
from stagedkd.stages.provenance import describe_environments, differences
from stagedkd.stages.weights import weights_file
from stagedkd.store.maintenance import closure_problems, manifest_at
from stagedkd.store.manifest import Manifest, Upstream, file_digest
from stagedkd.store.rebuilt import Rebuilt
from stagedkd.store.records import records
from stagedkd.store.runlog import read_run_log
from stagedkd.store.store import MANIFEST, Artifact, Store

REBUILDS = ".rebuilds"  # in the store of a rebuild: the keys of what is rebuilt


@dataclass(frozen=True)
class Target:
    """The result that is to be rebuilt.

    `originals` is the store that may have the original artifacts. `whole`: the original artifacts of `manifests` must
    exist. `file`: a file that is compared by itself.
    """

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
    requested: tuple[str | None, int | None] = (None, None),
) -> Rebuilt:
    """Rebuild a result from its manifests alone and compare it with the original, bit for bit.

    Args:
        what: a results folder, the folder of an artifact, or a .safetensors file that stagedkd wrote.
        original: the project's store, for what `what` leaves out: other stages and their run.json.
        root: the store to build in: a new folder, or one in which the same rebuild was stopped.
        requested: device and threads that the user requests; None takes the original's, if its run.json has them.
    Raises:
        UsageError: `what` is none of these, the user's own code is missing, or `root` holds something else.
        LockError: code, data or weights differ from the original's.
        StoreError: a manifest is missing, or of another version.
        TrainingError: a stage failed.
    """
    target = find_target(what, original)
    graph = graph_of(target.manifests)
    original_runs = {stage.name: read_run_log(target.originals.root / stage.folder).run for stage in graph.stages}
    graph = check_files(graph, runtime)
    _begin(root, target.manifests)
    runtime = runtime.model_copy(update={"store": str(root), "log": ()})
    runtimes = {
        stage.identity: runtime_like_original(stage, runtime, original_runs[stage.name], requested)
        for stage in graph.stages
    }
    artifacts = run_graph(graph, runtime, listener, runtimes)
    compared: dict[str, tuple[str, ...]] = {}
    required = {m.folder for m in target.manifests} if target.whole else set[str]()
    for name, artifact in artifacts.items():
        folder = target.originals.root / name
        if (folder / "files").is_dir():
            compared[name] = tuple(compare_artifacts(folder, artifact.folder))
        elif name in required:
            raise StoreError(f"the original artifact {folder} is missing")
    if target.file is not None:
        compared[str(target.file)] = tuple(_compare_file(target.file, artifacts))
    bare = tuple(name for name in artifacts if name not in compared)
    environment = environment_differences(original_runs, {name: artifacts[name].run for name in original_runs})
    return Rebuilt(tuple(artifacts), compared, bare, environment)


def _begin(root: Path, manifests: Iterable[Manifest]) -> None:
    """Begin a rebuild in the folder `root`, or go on with it. Raises UsageError: the folder holds something else."""
    mark, text = root / REBUILDS, "".join(f"{key}\n" for key in sorted(m.key for m in manifests))
    if mark.is_file() and mark.read_bytes() == text.encode():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        what = "already exists and holds the rebuild of another result" if mark.is_file() else "already exists"
        raise UsageError(f"{root} {what}", hint="name a new folder")
    root.mkdir(parents=True, exist_ok=True)
    write_whole(mark, text)


def environment_differences(
    originals: Mapping[str, dict[str, Any] | None], rebuilt: Mapping[str, dict[str, Any] | None]
) -> tuple[str, ...] | None:
    """List the facts that bits may depend on and that differ, or are unknown, between the run.json of the original
    stages and those of the rebuilt ones, both by stage name; None if no original has a run.json."""
    if all(run is None for run in originals.values()):
        return None
    lines: list[str] = []
    for name, old in originals.items():
        if old is None:
            lines.append(f"{name}: unknown there, since its run.json is missing")
            continue
        new = rebuilt[name] or {}
        lines += differences(old, new)
        for which, run in (("original", old), ("rebuilt", new)):
            if describe_environments(run):
                lines.append(f"the {which} {name} was made in several environments: {describe_environments(run)}")
    return tuple(dict.fromkeys(lines))


def find_target(what: Path, original: Store) -> Target:
    """Find the manifests of a results folder, an artifact or a file of weights, and check that each key is that of its
    work.

    Raises:
        UsageError: `what` is none of these. StoreError: a manifest is missing, or of another version.
    """
    if what.is_file():
        target = Target((manifest_in(what),), original, whole=False, file=what)
    elif (what / "files").is_dir() or (what / MANIFEST).is_file():
        folder = (what if (what / "files").is_dir() else what.parent).resolve()
        manifest = manifest_at(folder)
        if isinstance(manifest, str):
            hint = "restore it; or another version of stagedkd made it: use that version"
            raise StoreError(f"{folder}: {manifest}", hint=hint)
        if folder.name != manifest.folder:
            hint = f"rename the folder to {manifest.folder}"
            raise UsageError(f"{folder} does not have the name of its artifact, {manifest.folder}", hint=hint)
        target = Target((manifest,), Store(folder.parent))
    else:
        target = _find_run(what, original)
    for manifest in target.manifests:
        problems = closure_problems(manifest)
        if problems:
            hint = "it was changed, or another version of stagedkd made it: use that version"
            raise StoreError(f"the manifest of {manifest.folder}: {problems[0]}", hint=hint)
    return target


def _find_run(what: Path, original: Store) -> Target:
    """Find the target of a results folder: the last run of its name that made the student in the folder, if the store
    has all artifacts of that run; otherwise that student alone."""
    student = what / "student.safetensors"
    student_keys = {manifest_in(student).key} if student.is_file() else set[str]()
    named = (run for run in records(original.root) if run.name == what.resolve().name)
    run = next((run for run in named if student_keys <= set(run.keys)), None)
    if what.is_dir() and run is not None:
        manifests = {m.key: m for m in original.manifests() if m.key in run.keys}
        inner = {key for m in manifests.values() for key in m.closure if key != m.key}
        if manifests.keys() == set(run.keys):
            ends = tuple(m for key, m in sorted(manifests.items()) if key not in inner)
            return Target(ends, original, file=student if student.is_file() else None)
    if student.is_file():
        return Target((manifest_in(student),), original, whole=False, file=student)
    if not what.exists():
        raise UsageError(f"{what} does not exist")
    hint = "give a results folder, a folder of the store, or a student.safetensors"
    raise UsageError(f"{what} is not a result with manifests", hint=hint)


def manifest_in(path: Path) -> Manifest:
    """Read the manifest in a safetensors file. Raises StoreError: it is missing, or of another version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as weights:
            metadata: dict[str, str] = cast(Any, weights).metadata() or {}
            text = metadata.get("stagedkd")
    except SafetensorError as error:
        raise StoreError(f"{path} is not a safetensors file: {error}") from None
    if text is None:
        raise StoreError(f"{path} has no manifest of stagedkd in its metadata")
    try:
        return Manifest.model_validate_json(text, strict=False)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        hint = "another version of stagedkd made it: use that version"
        raise StoreError(f"the manifest in {path} cannot be read (at {field})", hint=hint) from None


def graph_of(manifests: Iterable[Manifest]) -> Graph:
    """The graph of the stages of all closures, each after those that it needs. Stages have their names in the store."""
    closure: dict[Key, Upstream] = {}
    lock = Lock()
    for manifest in manifests:
        closure |= manifest.closure
        lock = Lock(data={**lock.data, **manifest.lock.data}, weights={**lock.weights, **manifest.lock.weights})
    stages: dict[Key, Stage] = {}
    left = sorted(closure, reverse=True)
    while left:
        key = left.pop()
        above = closure[key].needs
        if missing := [other for other in above.values() if other not in stages]:
            left += [key, *reversed(missing)]
        elif key not in stages:
            needs = {label: other.folder(closure[other].work.kind) for label, other in above.items()}
            stages[key] = Stage(key.folder(closure[key].work.kind), closure[key].work, needs, key)
    works = [stage.work for stage in stages.values()]
    return Graph("reproduced", lock, tuple(stages.values()), _clip(works), validate_every=0)


def _clip(works: list[Work]) -> Clip:
    """How videos are read. torchcodec reads without a cache; the pixels are the same with a cache and without."""
    clip = next((w.view for w in works if w.view is not None), Clip(cache="none"))
    readings = [w.reading.decoder for w in works if isinstance(w, PrepareWork) and w.reading is not None]
    if "torchcodec" in readings:
        return clip.model_copy(update={"cache": "none", "decoder": "torchcodec"})
    return clip


def check_files(graph: Graph, runtime: Runtime) -> Graph:
    """Compare the user's own code, the data and the weights with the digests in the works.

    Returns:
        the graph with the files of its data sets in its lock, which manifests leave out.
    Raises:
        UsageError: a file is missing. LockError: a file differs.
    """
    lock, root = graph.lock, Path(runtime.root)
    for stage in graph.stages:
        for section in _sections(stage.work):
            _check_user_files(section, root)
        for arch, weights in stage.work.weight_files:
            if file_digest(weights_file(weights.name, arch, runtime)) != weights.sha256:
                raise LockError(f"weights {weights.name} differ from those of the original")
        if isinstance(stage.work, PrepareWork) and isinstance(stage.work.data, Videos):
            lock = _with_files(lock, stage.work.data, str(stage.work.fingerprint), runtime)
    return replace(graph, lock=lock)


def _sections(value: Any) -> Iterator[BaseModel]:
    """All sections in a value, at any depth."""
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(cast("Mapping[Any, Any]", value).values())
    for item in cast("list[Any] | tuple[Any, ...]", value) if isinstance(value, list | tuple) else ():
        yield from _sections(item)


def _check_user_files(section: BaseModel, root: Path) -> None:
    """Compare the user's own code, tables of weights and model folders with their digests."""
    if isinstance(section, FileLoss):
        _check_user_code(UserFiles(section.path, section.digest, code=True), root)
    if isinstance(section, WeightFile):
        _check_user_code(UserFiles(section.file, section.digest, code=False), root)
    if not isinstance(section, Architecture) or section.user_files is None:
        return
    files = section.user_files
    if files.code:
        _check_user_code(files, root)
        return
    values = section.model_dump(exclude={"digest"})
    _, message, hint = section.put_digest(values, root, OwnFiles(root).digest)
    if message or values.get("digest") != files.digest:
        raise LockError(message or f"the model {files.path} differs from that of the original", hint=hint)


def _check_user_code(files: UserFiles, root: Path) -> None:
    """Check that the user's file at `files.path`, code or a table, is inside the project and has its digest."""
    path = (root / files.path).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UsageError(f"{files.path} is outside the project's folder {root} and is not run")
    if not path.is_file():
        what = "your own code" if files.code else "your table"
        raise UsageError(f"{what} {files.path} is missing", hint=f"put it at {path}")
    if file_digest(path) != files.digest:
        hint = f"restore the file whose SHA-256 starts with {files.digest[:16]}"
        raise LockError(f"{files.path} differs from the file of the original", hint=hint)


def _with_files(lock: Lock, data: Videos, expected: str, runtime: Runtime) -> Lock:
    """The lock with the files of a data set, which must have the `expected` fingerprint."""
    name = str(data_id(data))
    entry = fingerprint(data, runtime.folder("data_dir"), HashMemo(runtime.folder("cache") / "hashes.json"))
    if entry.fingerprint != expected:
        locked = read_lock(runtime.lock_path).data.get(name)
        if locked is not None and locked.fingerprint == expected:
            require_equal(name, locked, entry)
        fingerprints = f"fingerprint {expected[:12]} there, {entry.fingerprint[:12]} here"
        raise LockError(f"data {name} differ from those of the original ({fingerprints})", hint="restore the data")
    return lock.with_data(name, entry)


def runtime_like_original(
    stage: Stage, runtime: Runtime, original: dict[str, Any] | None, requested: tuple[str | None, int | None]
) -> Runtime:
    """The runtime with the original's device, threads, number of processes and compile flag, each if it is known,
    available here and not requested otherwise; with one process if their number is not possible here.

    Args:
        original: run.json of the original. requested: device and threads that the user requests.
    """
    from stagedkd.launch.torchrun import check_ranks
    from stagedkd.stages.networks import device_of

    update: dict[str, Any] = {}
    if original and requested[1] is None and original.get("threads"):
        update["threads"] = original["threads"]
    if original and original.get("compile") is not None:
        update["compile"] = original["compile"]
    if original and requested[0] is None and original.get("device"):
        try:
            device_of(original["device"])
            update["device"] = original["device"]
        except UsageError:
            pass  # the report lists the other device
    processes = {"gpus": original["gpus"]} if original and original.get("gpus") else {}
    try:
        check_ranks([stage], runtime.model_copy(update=update | processes))
    except UsageError:
        processes = {"gpus": 1}
    return runtime.model_copy(update=update | processes)


def _compare_file(path: Path, artifacts: Mapping[str, Artifact]) -> list[str]:
    """Compare a file of weights with the rebuilt one; describe how they differ."""
    from stagedkd.stages.networks import network_file

    manifest = manifest_in(path)
    rebuilt = artifacts[manifest.folder].file(network_file(manifest.work))
    return compare_files(path.name, path, rebuilt)
