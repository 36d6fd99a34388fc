"""Memory and time of a long video: indexing, caching, and reading windows of it with and without a cache.

    python benchmarks/long_video.py make FOLDER [SECONDS]                   # writes FOLDER/long.mp4; needs ffmpeg
    /usr/bin/time -v python benchmarks/long_video.py STEP FOLDER            # GNU time, for the peak of memory

STEP is `inspect`, `raw` or `jpeg` (build the cache at 128 lines, if there is none, and read windows of 16 frames from
it), `verify` (compare the raw cache with a fresh decode), `stream` (read windows from the file), or `compare` (decode
the same windows from the beginning of the file, too, and count the frames that differ).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec
from stagedkd.data.cache_build import differences, open_cache
from stagedkd.data.decode import decode, inspect
from stagedkd.data.fingerprint import HashMemo
from stagedkd.data.shard import Form
from stagedkd.data.source import VideoFiles

LINES, WINDOW = 128, 16


def make(folder: Path, seconds: int) -> None:
    """Write a video of 30 frames a second with B-frames and a key frame every 250 frames."""
    source = ["-f", "lavfi", "-i", "testsrc=s=320x240:r=30", "-t", str(seconds)]
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "35", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *codec, str(folder / "long.mp4")], check=True)


def windows(count: int) -> list[list[int]]:
    """Windows at the beginning, in the middle and at the end."""
    return [list(range(start, start + WINDOW)) for start in (count // 100, count // 2, count - WINDOW)]


def open_long(folder: Path, form: Form) -> CacheSpec:
    size, sha256 = HashMemo().sha256(folder / "long.mp4")
    spec = CacheSpec(folder, {"long.mp4": f"{size}:{sha256}"}, LINES, form)
    started = time.perf_counter()
    cache = open_cache(folder / "cache", spec, 1, lambda *_: None, print)
    print(f"open or build: {time.perf_counter() - started:.1f} s")
    for frames in windows(cache.clip("long.mp4").frames):
        started = time.perf_counter()
        cache.frames("long.mp4", frames)
        print(f"frames {frames[0]} to {frames[-1]}: {time.perf_counter() - started:.3f} s")
    print(f"{sum(p.stat().st_size for p in (folder / 'cache' / spec.name).iterdir()) / 2**30:.2f} GiB on the disk")
    return spec


def main(step: str, folder: Path) -> None:
    path, started = folder / "long.mp4", time.perf_counter()
    if step == "inspect":
        footage = inspect(Address(path))
        print(f"{footage.frames:,} frames in {time.perf_counter() - started:.1f} s: {footage.fault or 'sound'}")
    elif step == "raw" or step == "jpeg":
        open_long(folder, "raw" if step == "raw" else "jpeg")
    elif step == "verify":
        spec = open_long(folder, "raw")
        started = time.perf_counter()
        cache = open_cache(folder / "cache", spec, 1, lambda *_: None, print)
        found = list(differences(cache, spec, 1, lambda *_: None))
        print(f"{found or 'equal'}: {time.perf_counter() - started:.1f} s")
    else:
        files = VideoFiles(folder, LINES)
        for frames in windows(inspect(Address(path)).frames):
            started = time.perf_counter()
            window = files.frames("long.mp4", frames)
            print(f"frames {frames[0]} to {frames[-1]}: {time.perf_counter() - started:.2f} s")
            if step == "compare":
                started = time.perf_counter()
                other = decode(Address(path), LINES, frames).frames_THWC
                wrong = sum(not np.array_equal(one, two) for one, two in zip(window, other, strict=True))
                print(f"    from the beginning {time.perf_counter() - started:.1f} s: {wrong} of 16 frames differ")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3600)
    else:
        main(sys.argv[1], Path(sys.argv[2]))
