"""The clip cache: the decoded frames of a data set in memory-mapped shards. It can be removed and rebuilt at any time.

The cache has a content key but is not an artifact: `<cache>/<key16>/shard-NNNNN.bin` with a `.json` beside it. The
`.json` is written last, so that a shard is complete or absent and a killed build resumes at the first absent one. A
long clip of a shard has a file of its own, `shard-NNNNN-KK.bin`. Each block of frames has a checksum, which is compared
when one of them is first read.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torchvision.io import decode_jpeg

from stagedkd.data.address import Address
from stagedkd.data.decode import DECODER_VERSION, Footage, probe, scaled
from stagedkd.data.shard import BLOCK, OWN, Form, StoredClip, store_clip
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.plan.key import digest

SHARD_CLIPS = 64
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
        return digest([DECODER_VERSION, self.shorter_side, self.form, sorted(self.files.items())])[:16]

    @property
    def shards(self) -> list[list[str]]:
        """The paths of the clips in each shard."""
        paths = sorted(self.files)
        return [paths[i : i + SHARD_CLIPS] for i in range(0, len(paths), SHARD_CLIPS)]


@dataclass(frozen=True)
class CachedClip:
    """A clip in the cache.

    Attributes:
        file: the name of the file that holds it; offset, size: its place there, in bytes.
        height, width: of the stored frames, in pixels.
        crcs: the checksum of every block of frames; for JPEGs, then that of their places.
        footage: what the whole clip holds.
    """

    file: str
    offset: int
    size: int
    height: int
    width: int
    crcs: tuple[int, ...]
    footage: Footage


class ClipCache:
    """An open cache. Opening it checks that every file exists and has the size that it was written with.

    Raises:
        StoreError: a file is missing or has another size.
    """

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.folder, self.form = folder, spec.form
        self.clips: dict[str, CachedClip] = {}
        self.blobs: dict[str, npt.NDArray[np.uint8]] = {}
        self.checked: set[tuple[str, int]] = set()
        for number, paths in enumerate(spec.shards):
            listed: dict[str, Any] = json.loads((folder / f"shard-{number:05d}.json").read_text("utf-8"))
            for name, size in listed["bytes"].items():
                blob = folder / name
                if not blob.is_file() or blob.stat().st_size != size:
                    raise _damaged(blob, "has another size than it was written with")
                self.blobs[name] = np.memmap(blob, np.uint8, "r") if size else np.zeros(0, np.uint8)
            for path in paths:
                row = listed["clips"][path]
                row |= {"crcs": tuple(row["crcs"]), "footage": _footage(row["footage"])}
                self.clips[path] = CachedClip(**row)

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames of a clip with these indices (None: all of them), uint8 (T, H, W, 3).

        Raises:
            StoreError: the stored bytes of these frames differ from those that were written.
        """
        clip = self.clips[path]
        count = clip.footage.frames
        indices = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        self.check(path, np.unique(indices // BLOCK).tolist())
        stored = self.blobs[clip.file][clip.offset : clip.offset + clip.size]
        if self.form == "raw":
            return np.ascontiguousarray(stored.reshape(count, clip.height, clip.width, 3)[indices])
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
        clip = self.clips[path]
        every = range(len(clip.crcs))
        wanted = list(every if blocks is None else blocks)
        if self.form == "jpeg":  # their places first, by which the other blocks are found
            wanted = [*every[-1:], *wanted]
        for block in wanted:
            if (path, block) in self.checked:
                continue
            start, end = self._span(clip, block)
            with (self.folder / clip.file).open("rb") as stream:  # without mapping what is read only once
                stream.seek(clip.offset + start)
                if zlib.crc32(stream.read(end - start)) != clip.crcs[block]:
                    raise _damaged(self.folder / clip.file, f"is damaged at {path}")
            self.checked.add((path, block))

    def _span(self, clip: CachedClip, block: int) -> tuple[int, int]:
        """Return where a block of frames begins and ends, in bytes from the beginning of the clip."""
        count = clip.footage.frames
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
        return self.blobs[clip.file][end - 8 * (clip.footage.frames + 1) : end].view(np.uint64)


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
            cache is damaged.
    """
    folder = cache / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{spec.name}.lock"):
        missing = [i for i in range(len(spec.shards)) if not (folder / f"shard-{i:05d}.json").is_file()]
        if missing:
            if not spec.root.is_dir():
                hint = "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml"
                raise UsageError(f"the folder {spec.root}, whose videos are to be decoded, does not exist", hint=hint)
            _require_room(cache, spec, missing, max(1, workers), note)
            _build(folder, spec, missing, max(1, workers), progress)
    return ClipCache(folder, spec)


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

    def store(job: tuple[str, Path], stop: Event) -> StoredClip:
        return store_clip(Address.read(spec.root, job[0]), spec.shorter_side, spec.form, job[1], stop)

    stored = _in_order(todo, store, workers, lambda n: progress(total - len(todo) + n, total))
    with closing(stored):
        for number in missing:
            blob = folder / f"shard-{number:05d}.bin"
            clips: dict[str, dict[str, Any]] = {}
            sizes: dict[str, int] = {}
            with blob.with_suffix(".making").open("wb") as stream:
                for (path, own), clip in islice(stored, len(shards[number])):
                    file, offset = (blob, stream.tell()) if clip.parts or not clip.size else (own, 0)
                    stream.writelines(clip.parts)
                    sizes |= {} if file is blob else {own.name: clip.size}
                    row = CachedClip(file.name, offset, clip.size, clip.height, clip.width, clip.crcs, clip.footage)
                    clips[path] = {**row.__dict__, "footage": _packed(clip.footage)}
                    done += 1
                    progress(done, total)
                stream.flush()
                os.fsync(stream.fileno())
                sizes[blob.name] = stream.tell()
            blob.with_suffix(".making").replace(blob)
            listed = blob.with_suffix(".json.making")
            listed.write_text(json.dumps({"bytes": sizes, "clips": clips}), "utf-8")
            listed.replace(blob.with_suffix(".json"))


def differences(cache: ClipCache, spec: CacheSpec, workers: int, progress: Progress) -> Iterator[str]:
    """Read every clip of the cache, decode its file again, and yield a line for each clip that differs."""
    total = len(spec.files)

    def compare(path: str, stop: Event) -> str:
        clip = cache.clips[path]
        try:
            cache.check(path)
        except StoreError as error:
            return f"{path}: {error.message}"
        fresh = store_clip(Address.read(spec.root, path), spec.shorter_side, spec.form, None, stop)
        if fresh.crcs != clip.crcs:
            return f"{path}: the cached frames differ from a fresh decode"
        if fresh.footage != clip.footage:
            return f"{path}: the file holds {fresh.footage.frames} frames now, the cache {clip.footage.frames}"
        return ""

    compared = _in_order(sorted(spec.files), compare, workers, lambda n: progress(n, total))
    with closing(compared):
        for done, (_, line) in enumerate(compared, 1):
            if line:
                yield line
            progress(done, total)


def _packed(footage: Footage) -> dict[str, Any]:
    """Return footage for the `.json`; evenly spaced times are stored as first and last, since the list is long."""
    row, times = asdict(footage), list(footage.times)
    even = len(times) > 1 and times == _even(times[0], times[-1], len(times))
    row["times"] = {"from": times[0], "to": times[-1]} if even else times
    return row


def _even(first: float, last: float, count: int) -> list[float]:
    """Return `count` evenly spaced times."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def _footage(row: dict[str, Any]) -> Footage:
    """Return the footage that `_packed` packed."""
    times = row["times"]
    unpacked = _even(times["from"], times["to"], row["frames"]) if isinstance(times, dict) else times
    return Footage(row["frames"], row["height"], row["width"], tuple(unpacked), row["fault"], row["note"])


def _in_order(
    jobs: Sequence[T], do: Callable[[T, Event], U], workers: int, waiting: Callable[[int], None]
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
