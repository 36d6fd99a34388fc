"""Update `stagedkd.lock` for a spec, and compare the data and weights on the disk with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stagedkd.data.fingerprint import HashMemo, fingerprint, require_equal
from stagedkd.errors import Advice, LockError, UsageError
from stagedkd.files import locked
from stagedkd.plan.lock import Lock, data_id, read_lock, write_lock
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Simulated, Spec, is_weight_file
from stagedkd.stages.weights import all_weights, weights_file
from stagedkd.store.manifest import file_digest


def fetch_weights(specs: Iterable[Spec], runtime: Runtime) -> list[str]:
    """Download the weight files that specs name to torch's cache, and lock their hashes.

    Returns:
        a line with the path of each file, then a line for each entry of the lock that was written.
    Raises:
        UsageError: a file does not exist and cannot be downloaded.
    """
    specs, lines = list(specs), list[str]()
    with locked(_guard(runtime)):
        lock = before = read_lock(runtime.lock_path)
        for spec in specs:
            lines += [f"{n}: {weights_file(str(net.weights), net, runtime)}" for n, net in all_weights(spec).items()]
            lock = _with_weights(spec, runtime, lock, accept=False)
        if lock != before:
            write_lock(runtime.lock_path, lock)
    return [*dict.fromkeys(lines), *_weight_lines(before, lock)]


def _guard(runtime: Runtime) -> Path:
    """The file whose file lock keeps two processes from writing `stagedkd.lock` at once."""
    return runtime.folder("cache") / "lock.guard"


def _weight_lines(before: Lock, lock: Lock) -> list[str]:
    """A line for each weight file whose entry has changed."""
    return [f"weights {n}: {s[:12]}" for n, s in lock.weights.items() if before.weights.get(n) != s]


def lock_specs(specs: Iterable[Spec], runtime: Runtime, *, accept: bool) -> tuple[Lock, list[str]]:
    """Add the missing entries of specs to the lock. With `accept`, also replace the entries that differ from the disk.
    Data and weights that several specs have in common are read once.

    Returns:
        the lock, and a line for each entry that was written.
    Raises:
        LockError: the disk differs from an entry, and `accept` is off. UsageError: data or weights are missing.
    """
    path = runtime.lock_path
    with locked(_guard(runtime)):
        lock = before = read_lock(path)
        data: set[str | None] = set()
        weights: set[str] = set()
        for spec in specs:
            if data_id(spec.data) not in data:
                lock = _with_data(spec, runtime, lock, accept=accept)
            if not all_weights(spec).keys() <= weights:
                lock = _with_weights(spec, runtime, lock, accept=accept)
            data.add(data_id(spec.data))
            weights |= all_weights(spec).keys()
        if lock != before:
            write_lock(path, lock)
    lines = [
        f"data {n}: {e.clips} clips, {len(e.classes)} classes, {e.fingerprint[:12]}"
        for n, e in lock.data.items()
        if before.data.get(n) != e
    ]
    return lock, lines + _weight_lines(before, lock)


def _with_data(spec: Spec, runtime: Runtime, lock: Lock, *, accept: bool) -> Lock:
    """The lock with the entry of the spec's data set."""
    name = data_id(spec.data)
    if name is None or isinstance(spec.data, Simulated):
        return lock
    memo = HashMemo(runtime.folder("cache") / "hashes.json")
    try:
        entry = fingerprint(spec.data, runtime.folder("data_dir"), memo)
    except UsageError:
        if name in lock.data and not accept:
            return lock  # a clone without the raw data: the lock has their hashes, and the store may have the artifacts
        raise
    if name in lock.data and not accept:
        require_equal(name, lock.data[name], entry)
    return lock.with_data(name, entry)


def _with_weights(spec: Spec, runtime: Runtime, lock: Lock, *, accept: bool) -> Lock:
    """The lock with the entries of the spec's weight files."""
    for name, network in all_weights(spec).items():
        if name in lock.weights and not accept and not is_weight_file(name):
            continue  # torch checks the hash when it downloads; the stage checks it again before it trains
        try:
            digest = file_digest(weights_file(str(network.weights), network, runtime))
        except UsageError:
            if name in lock.weights and not accept:
                continue
            raise
        if lock.weights.get(name, digest) != digest and not accept:
            hint = Advice("restore the file, or run", "lock")
            raise LockError(f"weights {name} differ from stagedkd.lock", hint=hint)
        lock = lock.with_weights(name, digest)
    return lock
