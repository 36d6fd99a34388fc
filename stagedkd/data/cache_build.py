"""Build the clip cache, and compare it with the files: see `cache.py`, which reads it."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, TypeVar

from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec, ClipCache
from stagedkd.data.cache_index import DamagedIndexError
from stagedkd.data.decode import Footage, probe, scaled
from stagedkd.data.fingerprint import HashMemo, require_locked
from stagedkd.data.shard import OWN, StoredClip, store_clip
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.files import flush, locked, record_text

JPEG_FRACTION = 0.15  # of the raw size, for the estimate
DECODER_PICTURES = 24  # that a decoder keeps, for the estimate
WAIT = 5.0  # seconds after which a build that waits for a long clip looks whether it is to stop
T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[int, int], None]


def open_cache(
    cache: Path, spec: CacheSpec, workers: int, progress: Progress, note: Callable[[str], None]
) -> ClipCache:
    """Open the cache of these files; build the shards that are missing.

    Args:
        cache: the folder of all caches. workers: decoding threads; their number changes no byte.
        progress: called with the numbers of decoded and of all clips. note: called with the size before a build begins.
    Raises:
        UsageError: the folder of the videos does not exist. DataError: the disk cannot hold the cache. StoreError: the
            cache is damaged. LockError: a video is not the one of the lock.
    """
    folder = cache / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{spec.name}.lock"):
        while True:
            _build_missing(folder, spec, max(1, workers), progress, note)
            try:
                return ClipCache(folder, spec)
            except DamagedIndexError as error:
                note(f"{error.message}; its clips are decoded again")
                error.index.unlink()


def _build_missing(
    folder: Path, spec: CacheSpec, workers: int, progress: Progress, note: Callable[[str], None]
) -> None:
    """Build the shards whose index is missing. Raises what `open_cache` raises."""
    missing = [i for i in range(len(spec.shards)) if not (folder / f"shard-{i:05d}.json").is_file()]
    if missing:
        if not spec.root.is_dir():
            hint = "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml"
            raise UsageError(f"the folder {spec.root}, whose videos are to be decoded, does not exist", hint=hint)
        _require_room(folder.parent, spec, missing, workers, note)
        _build(folder, spec, missing, workers, progress)


def estimate(spec: CacheSpec, shards: Sequence[int]) -> int:
    """Estimate the bytes of shards from the headers of at most 64 files spread over them."""
    return _estimates(spec, shards, 1)[0]


def _estimates(spec: CacheSpec, shards: Sequence[int], workers: int) -> tuple[int, int]:
    """Estimate the bytes that shards take on the disk, and those that their decoding takes in memory at most."""
    paths = [path for i in shards for path in spec.shards[i]]
    step = max(1, len(paths) // 64)
    headers = [header for path in paths[::step] if (header := probe(Address.read(spec.root, path)))[0]]
    if not headers:
        return 0, 0
    fraction = 1.0 if spec.form == "raw" else JPEG_FRACTION
    sizes = [fraction * n * 3 * (s := scaled(h, w, spec.shorter_side))[0] * s[1] for n, h, w in headers]
    decoder = max(DECODER_PICTURES * 1.5 * h * w for _, h, w in headers)
    memory = 2 * workers * min(OWN, max(sizes)) + workers * decoder
    return int(len(paths) * sum(sizes) / len(sizes)), int(memory)


def _require_room(
    cache: Path, spec: CacheSpec, missing: Sequence[int], workers: int, note: Callable[[str], None]
) -> None:
    """Raise DataError if the disk cannot hold the missing shards; otherwise note their size."""
    (needed, memory), free = _estimates(spec, missing, workers), shutil.disk_usage(cache).free
    clips = sum(len(spec.shards[i]) for i in missing)
    size = f"the clip cache takes about {_size(needed)} for {clips:,} clips"
    if needed > 0.95 * free:
        hint = "free some space, set clip.cache: jpeg or none, lower clip.resize, or set runtime.cache to another disk"
        raise DataError(f"{size}, and {cache} has {_size(free)} left", hint=hint)
    note(f"{size}; {_size(free)} are free; decoding holds up to {_size(memory)} of frames in memory")


def _size(size: int) -> str:
    """Return a number of bytes as text, in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _build(folder: Path, spec: CacheSpec, missing: Sequence[int], workers: int, progress: Progress) -> None:
    """Decode the clips of the missing shards and write the shards, each with its `.json`."""
    shards, total = spec.shards, len(spec.files)
    todo = [(path, folder / f"shard-{i:05d}-{k:02d}.bin") for i in missing for k, path in enumerate(shards[i])]
    done = total - len(todo)

    memo = HashMemo()

    def store(job: tuple[str, Path], stop: Event) -> StoredClip:
        address = Address.read(spec.root, job[0])
        require_locked(memo, address, spec.files[job[0]])
        stored = store_clip(address, spec.shorter_side, spec.form, job[1], stop)
        require_locked(memo, address, spec.files[job[0]])  # it was not changed meanwhile
        return stored

    stored = _in_order(todo, store, workers, lambda n: progress(total - len(todo) + n, total))
    with closing(stored):
        for number in missing:
            blob = folder / f"shard-{number:05d}.bin"
            clips: dict[str, dict[str, Any]] = {}
            sizes: dict[str, int] = {}
            times = array("d")
            with _making(blob) as stream:
                for (path, own), clip in islice(stored, len(shards[number])):
                    file, offset = (blob, stream.tell()) if clip.parts or not clip.size else (own, 0)
                    stream.writelines(clip.parts)
                    sizes |= {} if file is blob else {own.name: clip.size}
                    clips[path] = _row(clip, file.name, offset, len(clips), len(times))
                    times.extend(clip.footage.times)
                    done += 1
                    progress(done, total)
                sizes[blob.name] = stream.tell()
            with _making(blob.with_suffix(".times")) as stream:
                stream.write(times.tobytes())
                sizes[f"{blob.stem}.times"] = stream.tell()
            index = {"bytes": sizes, "clips": clips, "times": hashlib.sha256(times.tobytes()).hexdigest()}
            with _making(blob.with_suffix(".json")) as stream:
                stream.write(record_text(index).encode())
            flush(folder)


@contextmanager
def _making(path: Path) -> Generator[BinaryIO]:
    """Write a file, which gets its name when it is whole and on the disk."""
    making = path.with_suffix(f"{path.suffix}.making")
    with making.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    making.replace(path)


def _row(clip: StoredClip, file: str, offset: int, number: int, times: int) -> dict[str, Any]:
    """The row of a clip in the listing of a shard. `number` is its number there, `times` where its times begin."""
    footage = clip.footage
    return {
        "file": file,
        "number": number,
        "offset": offset,
        "size": clip.size,
        "height": clip.height,
        "width": clip.width,
        "crcs": clip.crcs,
        "frames": footage.frames,
        "full_height": footage.height,
        "full_width": footage.width,
        "times": [times, times + len(footage.times)],
        "fault": footage.fault,
        "note": footage.note,
    }


def differences(cache: ClipCache, spec: CacheSpec, workers: int, progress: Progress) -> Iterator[str]:
    """Read every clip of the cache, decode its file again, and yield a line for each clip that differs."""
    total = len(spec.files)

    def compare(job: tuple[str, Footage], stop: Event) -> str:
        path, footage = job
        try:
            cache.check(path)
        except StoreError as error:
            return f"{path}: {error.message}"
        fresh = store_clip(Address.read(spec.root, path), spec.shorter_side, spec.form, None, stop)
        if list(fresh.crcs) != list(cache.clip(path).crcs):
            return f"{path}: the cached frames differ from a fresh decode"
        if fresh.footage != footage:
            return f"{path}: the file holds {fresh.footage.frames} frames now, the cache {footage.frames}"
        return ""

    compared = _in_order(cache.footages(), compare, workers, lambda n: progress(n, total))
    with closing(compared):
        for done, (_, line) in enumerate(compared, 1):
            if line:
                yield line
            progress(done, total)


def _in_order(
    jobs: Iterable[T], do: Callable[[T, Event], U], workers: int, waiting: Callable[[int], None]
) -> Generator[tuple[T, U]]:
    """Do jobs in parallel and yield them in order with their results, of which at most two a worker are in memory.

    Args:
        do: does a job; it ends early if the event is set.
        waiting: called with the number of jobs that are done, every few seconds during a long one.
    """
    stop, left, done = Event(), iter(jobs), 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            queue = [(job, pool.submit(do, job, stop)) for job in islice(left, 2 * workers)]
            while queue:
                job, future = queue.pop(0)
                while not wait([future], WAIT).done:
                    waiting(done)
                done += 1
                yield job, future.result()
                queue += [(job, pool.submit(do, job, stop)) for job in islice(left, 1)]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
