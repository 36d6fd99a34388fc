"""The clip cache: the decoded frames of a data set in memory-mapped shards. It can be removed and rebuilt at any time.

The cache has a content key but is not an artifact: `<cache>/<key16>/shard-NNNNN.bin` with a `.json` beside it. The
`.json` is written last, so that a shard is complete or absent and a killed build resumes at the first absent one. Each
clip has a checksum, which is compared when the clip is first read.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torchvision.io import decode_jpeg, encode_jpeg

from stagedkd.data.address import Address
from stagedkd.data.decode import DECODER_VERSION, Decoded, Footage, decode, probe, scaled
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.plan.key import digest

SHARD_CLIPS = 64
QUALITY = 95
JPEG_FRACTION = 0.15  # of the raw size, for the estimate
Form = Literal["raw", "jpeg"]
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
    """A clip in its shard: offset and size in bytes, height and width of the stored frames in pixels, their checksum,
    and what the whole file holds."""

    offset: int
    size: int
    height: int
    width: int
    crc: int
    footage: Footage


class ClipCache:
    """An open cache. Opening it checks that every shard exists and has the size that it was written with.

    Raises:
        StoreError: a shard is missing or has another size.
    """

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.folder, self.form = folder, spec.form
        self.clips: dict[str, CachedClip] = {}
        self.blobs: list[npt.NDArray[np.uint8]] = []
        self.shard_of: dict[str, int] = {}
        self.checked: set[str] = set()
        for number, paths in enumerate(spec.shards):
            blob = folder / f"shard-{number:05d}.bin"
            listed: dict[str, Any] = json.loads(blob.with_suffix(".json").read_text("utf-8"))
            if not blob.is_file() or blob.stat().st_size != listed["bytes"]:
                raise _damaged(blob, "has another size than it was written with")
            self.blobs.append(np.memmap(blob, np.uint8, "r") if listed["bytes"] else np.zeros(0, np.uint8))
            for path in paths:
                row = listed["clips"][path]
                self.clips[path] = CachedClip(**{**row, "footage": _footage(row["footage"])})
                self.shard_of[path] = number

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames of a clip with these indices (None: all of them), uint8 (T, H, W, 3).

        Raises:
            StoreError: the stored bytes differ from those that were written.
        """
        clip = self.clips[path]
        stored = self.blobs[self.shard_of[path]][clip.offset : clip.offset + clip.size]
        if path not in self.checked:
            if zlib.crc32(stored.data) != clip.crc:
                raise _damaged(self.folder / f"shard-{self.shard_of[path]:05d}.bin", f"is damaged at {path}")
            self.checked.add(path)
        count = clip.footage.frames
        indices = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        if self.form == "raw":
            return np.ascontiguousarray(stored.reshape(count, clip.height, clip.width, 3)[indices])
        ends = stored[: 4 * (count + 1)].view(np.uint32)
        pictures = [
            cast("torch.Tensor", decode_jpeg(torch.from_numpy(stored[ends[i] : ends[i + 1]].copy()))) for i in indices
        ]
        return torch.stack(pictures).permute(0, 2, 3, 1).contiguous().numpy()


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
            _require_room(cache, spec, missing, note)
            _build(folder, spec, missing, max(1, workers), progress)
    return ClipCache(folder, spec)


def estimate(spec: CacheSpec, shards: Sequence[int]) -> int:
    """Estimate the bytes of shards from the headers of at most 64 files spread over them."""
    paths = [path for i in shards for path in spec.shards[i]]
    step = max(1, len(paths) // 64)
    headers = [probe(Address.read(spec.root, path)) for path in paths[::step]]
    sizes = [n * 3 * (s := scaled(h, w, spec.shorter_side))[0] * s[1] for n, h, w in headers if n]
    fraction = 1.0 if spec.form == "raw" else JPEG_FRACTION
    return int(fraction * len(paths) * sum(sizes) / len(sizes)) if sizes else 0


def _require_room(cache: Path, spec: CacheSpec, missing: Sequence[int], note: Callable[[str], None]) -> None:
    """Raise DataError if the disk cannot hold the missing shards; otherwise note their size."""
    needed, free = estimate(spec, missing), shutil.disk_usage(cache).free
    clips = sum(len(spec.shards[i]) for i in missing)
    size = f"the clip cache takes about {_size(needed)} for {clips:,} clips"
    if needed > 0.95 * free:
        hint = "free some space, set clip.cache: jpeg or none, lower clip.resize, or set runtime.cache to another disk"
        raise DataError(f"{size}, and {cache} has {_size(free)} left", hint=hint)
    note(f"{size}; {_size(free)} are free")


def _size(size: int) -> str:
    """Return a number of bytes as text, in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _build(folder: Path, spec: CacheSpec, missing: Sequence[int], workers: int, progress: Progress) -> None:
    """Decode the clips of the missing shards and write the shards, each with its `.json`."""
    shards, todo = spec.shards, [(i, path) for i in missing for path in spec.shards[i]]
    total = len(spec.files)
    done = total - len(todo)
    with ThreadPoolExecutor(workers) as pool:
        decoded = _in_order(pool, spec, [path for _, path in todo], 2 * workers)
        for number in missing:
            blob = folder / f"shard-{number:05d}.bin"
            clips: dict[str, dict[str, Any]] = {}
            with blob.with_suffix(".making").open("wb") as stream:
                for path, clip in islice(decoded, len(shards[number])):
                    clips[path] = _write(stream, clip, spec.form)
                    done += 1
                    progress(done, total)
                stream.flush()
                os.fsync(stream.fileno())
                size = stream.tell()
            blob.with_suffix(".making").replace(blob)
            listed = blob.with_suffix(".json.making")
            listed.write_text(json.dumps({"bytes": size, "clips": clips}), "utf-8")
            listed.replace(blob.with_suffix(".json"))


def _write(stream: Any, clip: Decoded, form: Form) -> dict[str, Any]:
    """Append a clip to a shard and return its row for the `.json`."""
    blob = stored_bytes(clip, form)
    offset = stream.tell()
    stream.write(blob)
    stream.write(bytes(-len(blob) % 4))  # so that the uint32 offsets of JPEGs stay aligned
    _, height, width, _ = clip.frames_THWC.shape
    row = CachedClip(offset, len(blob), height, width, zlib.crc32(blob), clip.footage)
    return {**row.__dict__, "footage": _packed(clip.footage)}


def stored_bytes(clip: Decoded, form: Form) -> bytes:
    """Return the bytes that the cache stores for a clip: raw pixels, or offsets of its JPEGs and the JPEGs."""
    frames = clip.frames_THWC
    if form == "raw":
        return frames.tobytes()
    pictures = [_jpeg(frame) for frame in frames]
    ends = np.cumsum([4 * (len(frames) + 1), *map(len, pictures)], dtype=np.uint32)
    return b"".join([ends.tobytes(), *pictures])


def differences(cache: ClipCache, spec: CacheSpec, workers: int, progress: Progress) -> Iterator[str]:
    """Read every clip of the cache, decode its file again, and yield a line for each clip that differs."""
    with ThreadPoolExecutor(workers) as pool:
        for done, (path, fresh) in enumerate(_in_order(pool, spec, sorted(spec.files), 2 * workers), 1):
            clip = cache.clips[path]
            try:
                cache.frames(path, [])
            except StoreError as error:
                yield f"{path}: {error.message}"
            else:
                if zlib.crc32(stored_bytes(fresh, spec.form)) != clip.crc:
                    yield f"{path}: the cached frames differ from a fresh decode"
                elif fresh.footage != clip.footage:
                    yield f"{path}: the file holds {fresh.footage.frames} frames now, the cache {clip.footage.frames}"
            progress(done, len(spec.files))


def _jpeg(frame_HWC: npt.NDArray[np.uint8]) -> bytes:
    encoded = cast("torch.Tensor", encode_jpeg(torch.from_numpy(frame_HWC).permute(2, 0, 1), QUALITY))
    return encoded.numpy().tobytes()


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
    pool: ThreadPoolExecutor, spec: CacheSpec, paths: Sequence[str], ahead: int
) -> Iterator[tuple[str, Decoded]]:
    """Decode in parallel and yield in order, with at most `ahead` clips in memory."""
    waiting = iter(paths)
    queue = [(p, pool.submit(decode, Address.read(spec.root, p), spec.shorter_side)) for p in islice(waiting, ahead)]
    while queue:
        path, future = queue.pop(0)
        yield path, future.result()
        queue += [(p, pool.submit(decode, Address.read(spec.root, p), spec.shorter_side)) for p in islice(waiting, 1)]
