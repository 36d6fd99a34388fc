"""The clip cache: the decoded frames of a data set in memory-mapped shards. It can be removed and rebuilt at any time.

The cache has a content key but is not an artifact: `<cache>/<key16>/shard-NNNNN.bin` with a `.json` beside it. The
`.json` is written last, so that a shard is complete or absent and a killed build resumes at the first absent one. A
long clip of a shard has a file of its own, `shard-NNNNN-KK.bin`. The times of all frames of a shard are in
`shard-NNNNN.times`, as float64; only `Prepare` reads them. Each block of frames has a checksum, which is compared when
one of them is first read. The `.json` has a digest of its own and that of the times; a damaged one is built again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.address import Address
from stagedkd.data.cache_index import DamagedIndexError, read_index
from stagedkd.data.decode import DECODER_VERSION, Footage, probe, scaled
from stagedkd.data.fingerprint import HashMemo, require_locked
from stagedkd.data.shard import BLOCK, OWN, Form, StoredClip, store_clip
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.files import FileBytes, flush, locked, record_text
from stagedkd.plan.key import digest

SHARD_CLIPS = 64
LAYOUT = 2  # raised when the files of a cache change; part of its key
JPEG_FRACTION = 0.15  # of the raw size, for the estimate
DECODER_PICTURES = 24  # that a decoder keeps, for the estimate
WAIT = 5.0  # seconds after which a build that waits for a long clip looks whether it is to stop
T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CacheSpec:
    """The content of a cache. `files`: path below `root` -> "size:sha256"; the cache is keyed by these."""

    root: Path
    files: Mapping[str, str]
    shorter_side: int
    form: Form = "raw"

    @property
    def name(self) -> str:
        """The name of the cache's folder."""
        return digest([DECODER_VERSION, LAYOUT, self.shorter_side, self.form, sorted(self.files.items())])[:16]

    @cached_property
    def paths(self) -> list[str]:
        """The paths of all clips, sorted."""
        return sorted(self.files)

    @cached_property
    def shards(self) -> list[list[str]]:
        """The paths of the clips in each shard."""
        return [self.paths[i : i + SHARD_CLIPS] for i in range(0, len(self.paths), SHARD_CLIPS)]


@dataclass(frozen=True)
class CachedClip:
    """A clip in the cache.

    Attributes:
        file: the name of the file that holds it; offset, size: its place there, in bytes.
        height, width: of the stored frames, in pixels.
        frames: the number of frames.
        crcs: the checksum of every block of frames, uint32; for JPEGs, then that of their places.
        first: the number of its first checksum among those of all clips.
    """

    file: str
    offset: int
    size: int
    height: int
    width: int
    frames: int
    crcs: Sequence[int]
    first: int


class ClipCache:
    """An open cache. Opening it checks that every file exists and has the size that it was written with.

    The places of the clips and their checksums are kept as arrays of numbers, some 100 bytes a clip.

    Raises:
        StoreError: a file is missing or has another size. DamagedIndexError: an index is not what was written.
    """

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.folder, self.form, self.paths = folder, spec.form, spec.paths
        self.blobs: dict[str, npt.NDArray[np.uint8]] = {}
        self.places, self.crcs, self.ends = array("q"), array("I"), array("q", [0])
        for number, paths in enumerate(spec.shards):
            listed = self._listing(number)
            for name, size in listed["bytes"].items():
                blob = folder / name
                if not blob.is_file() or blob.stat().st_size != size:
                    raise _damaged(blob, "has another size than it was written with")
                if blob.suffix == ".bin":
                    self.blobs[name] = np.memmap(blob, np.uint8, "r") if size else np.zeros(0, np.uint8)
            for path in paths:
                row = listed["clips"][path]
                own = 0 if row["file"] == f"shard-{number:05d}.bin" else 1 + row["number"]
                sizes = (row[name] for name in ("offset", "size", "height", "width", "frames"))
                self.places.extend((own, *sizes))
                self.crcs.extend(row["crcs"])
                self.ends.append(len(self.crcs))
        self.checked = bytearray(len(self.crcs))

    def clip(self, path: str) -> CachedClip:
        """Return the place of a clip. Raises KeyError if the cache does not have it."""
        index = bisect_left(self.paths, path)
        if index == len(self.paths) or self.paths[index] != path:
            raise KeyError(path)
        own, offset, size, height, width, frames = self.places[6 * index : 6 * index + 6]
        shard = f"shard-{index // SHARD_CLIPS:05d}"
        file = f"{shard}-{own - 1:02d}.bin" if own else f"{shard}.bin"
        first, end = self.ends[index : index + 2]
        return CachedClip(file, offset, size, height, width, frames, self.crcs[first:end], first)

    def footages(self) -> Iterator[tuple[str, Footage]]:
        """Read what each clip holds, one shard after the other."""
        for number in range(-(-len(self.paths) // SHARD_CLIPS)):
            listed, file = self._listing(number), FileBytes.read(self.folder / f"shard-{number:05d}.times")
            if listed.get("times", file.digest) != file.digest:
                raise _damaged(file.path, "is damaged")
            times = np.frombuffer(file.content, np.float64)
            for path, row in listed["clips"].items():
                start, end = row["times"]
                size = (row["frames"], row["full_height"], row["full_width"])
                yield path, Footage(*size, array("d", times[start:end].tobytes()), row["fault"], row["note"])

    def _listing(self, number: int) -> dict[str, Any]:
        return read_index(self.folder / f"shard-{number:05d}.json")

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames of a clip with these indices (None: all of them), uint8 (T, H, W, 3).

        Raises:
            StoreError: the stored bytes of these frames differ from those that were written.
        """
        clip = self.clip(path)
        count = clip.frames
        indices = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        self.check(path, np.unique(indices // BLOCK).tolist())
        stored = self.blobs[clip.file][clip.offset : clip.offset + clip.size]
        if self.form == "raw":
            return np.ascontiguousarray(stored.reshape(count, clip.height, clip.width, 3)[indices])
        from torchvision.io import decode_jpeg  # it takes seconds to import

        ends = self._places(clip)
        pictures = [
            cast("torch.Tensor", decode_jpeg(torch.from_numpy(stored[ends[i] : ends[i + 1]].copy()))) for i in indices
        ]
        return torch.stack(pictures).permute(0, 2, 3, 1).contiguous().numpy()

    def check(self, path: str, blocks: Iterable[int] | None = None) -> None:
        """Compare the checksums of blocks of frames (None: all) that were not compared yet.

        Raises:
            StoreError: one differs.
        """
        clip = self.clip(path)
        every = range(len(clip.crcs))
        wanted = list(every if blocks is None else blocks)
        if self.form == "jpeg":  # their places first, by which the other blocks are found
            wanted = [*every[-1:], *wanted]
        for block in wanted:
            if self.checked[clip.first + block]:
                continue
            start, end = self._span(clip, block)
            with (self.folder / clip.file).open("rb") as stream:  # without mapping what is read only once
                stream.seek(clip.offset + start)
                if zlib.crc32(stream.read(end - start)) != clip.crcs[block]:
                    raise _damaged(self.folder / clip.file, f"is damaged at {path}")
            self.checked[clip.first + block] = True

    def _span(self, clip: CachedClip, block: int) -> tuple[int, int]:
        """Return where a block of frames begins and ends, in bytes from the beginning of the clip."""
        count = clip.frames
        first, last = min(count, block * BLOCK), min(count, (block + 1) * BLOCK)
        if self.form == "raw":
            return first * 3 * clip.height * clip.width, last * 3 * clip.height * clip.width
        if first == count:  # the places of the JPEGs
            return clip.size - 8 * (count + 1), clip.size
        ends = self._places(clip)
        return int(ends[first]), int(ends[last])

    def _places(self, clip: CachedClip) -> npt.NDArray[np.uint64]:
        """Return where each JPEG begins and where the last one ends, uint64 (T + 1,)."""
        end = clip.offset + clip.size
        return self.blobs[clip.file][end - 8 * (clip.frames + 1) : end].view(np.uint64)


def _damaged(blob: Path, what: str) -> StoreError:
    return StoreError(f"the clip cache {blob} {what}", hint=f"remove {blob.parent}: the next run builds it again")


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
