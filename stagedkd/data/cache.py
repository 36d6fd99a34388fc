"""The clip cache: all decoded frames of a data set in one memory-mapped uint8 file, made once, rebuilt at will.

A side product under its own content key, never an artifact: `<cache>/<key16>/frames.u8` and `clips.json` (written
last, so a cache is whole or not there).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from stagedkd.data.decode import DECODER_VERSION, Decoded, decode
from stagedkd.errors import UsageError
from stagedkd.plan.key import digest


@dataclass(frozen=True)
class CachedClip:
    """Where a clip lies in the file, its frames, height and width, and its fault, if any."""

    offset: int
    frames: int
    height: int
    width: int
    fault: str


class ClipCache:
    """Open cache. `frames(path)` is a view into the file, no copy."""

    def __init__(self, folder: Path) -> None:
        listed: dict[str, Any] = json.loads((folder / "clips.json").read_text("utf-8"))
        self.clips = {path: CachedClip(**row) for path, row in listed.items()}
        blob = folder / "frames.u8"
        size = blob.stat().st_size
        self.blob = np.memmap(blob, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def frames(self, path: str) -> npt.NDArray[np.uint8]:
        """(T, H, W, 3) uint8."""
        clip = self.clips[path]
        size = clip.frames * clip.height * clip.width * 3
        flat = self.blob[clip.offset : clip.offset + size]
        return flat.reshape(clip.frames, clip.height, clip.width, 3)


def open_cache(
    cache: Path,
    root: Path,
    files: Mapping[str, str],
    shorter_side: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> ClipCache:
    """Open the cache of these files, building it if it is not there.

    Args:
        cache: folder of all caches. root: what the paths are relative to.
        files: path -> "size:sha256", the content that the cache is keyed by.
        workers: decoding threads; changes no byte. progress: called with (done, all) clips.
    """
    name = digest([DECODER_VERSION, shorter_side, sorted(files.items())])[:16]
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not (folder / "clips.json").is_file():
            if not root.is_dir():
                hint = "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml"
                raise UsageError(f"no folder {root} to decode clips from", hint=hint)
            _build(folder, root, sorted(files), shorter_side, max(1, workers), progress)
    return ClipCache(folder)


def _build(
    folder: Path, root: Path, paths: Sequence[str], side: int, workers: int, progress: Callable[[int, int], None]
) -> None:
    making = folder.with_name(folder.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    making.mkdir()
    clips: dict[str, dict[str, Any]] = {}
    offset = 0
    with (making / "frames.u8").open("wb") as blob, ThreadPoolExecutor(workers) as pool:
        for path, decoded in _in_order(pool, root, paths, side, 2 * workers):
            frames = decoded.frames_THWC
            blob.write(frames.tobytes())
            count, height, width, _ = frames.shape
            clips[path] = CachedClip(offset, count, height, width, decoded.fault).__dict__
            offset += frames.nbytes
            progress(len(clips), len(paths))
        blob.flush()
        os.fsync(blob.fileno())
    (making / "clips.json").write_text(json.dumps(clips), "utf-8")
    making.rename(folder)


def _in_order(
    pool: ThreadPoolExecutor, root: Path, paths: Sequence[str], side: int, ahead: int
) -> Iterator[tuple[str, Decoded]]:
    """Decode in parallel, hand out in order, never more than `ahead` clips in memory."""
    waiting = iter(paths)
    queue = [(path, pool.submit(decode, root / path, side)) for path in islice(waiting, ahead)]
    while queue:
        path, future = queue.pop(0)
        yield path, future.result()
        queue += [(path, pool.submit(decode, root / path, side)) for path in islice(waiting, 1)]
