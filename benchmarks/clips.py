"""One side of a row about clips: prints one line of JSON with `seconds` (for benchmarks/speed.py).

    python benchmarks/clips.py SIDE

plain: a plain PyAV loop decodes 12 videos of 60 frames of 320x240, scales each frame as the clip cache does, and saves
each clip with NumPy. cache: the clip cache of the same videos, built by one thread. Both in CPU time. wall-1, wall-2:
the cache by one and two threads, in wall time. views: views for training of 16x112x112 with the default augmentation
from frames in memory, eight clips at once, in CPU time. Runs with any stagedkd on the path, so with an older one, too.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.cache import CacheSpec
from stagedkd.data.source import VideoClips
from stagedkd.data.views import Video
from stagedkd.spec.schema import Augment, Clip

try:
    from stagedkd.data.cache_build import open_cache
except ImportError:  # an older one
    from stagedkd.data.cache import open_cache  # pyright: ignore[reportAttributeAccessIssue]

VIDEOS, FRAMES, HEIGHT, WIDTH, SIDE = 12, 60, 240, 320, 128
Clock = Callable[[], float]


def write_videos(folder: Path) -> list[str]:
    """Write the videos: a texture that moves, so that there are motion vectors to decode."""
    texture = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = texture.repeat(8, 0).repeat(8, 1)
    for number in range(VIDEOS):
        with av.open(folder / f"{number:02d}.avi", "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for t in range(FRAMES):
                moved = np.roll(picture, (t, 2 * t + number), (0, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode())
    return sorted(path.name for path in folder.iterdir())


def plain(videos: Path, paths: Sequence[str], folder: Path, clock: Clock) -> float:
    """The seconds of the plain loop."""
    started = clock()
    for path in paths:
        with av.open(videos / path) as container:
            frames = [
                frame.reformat(
                    width=SIDE * WIDTH // HEIGHT, height=SIDE, format="rgb24", interpolation="AREA"
                ).to_ndarray()
                for frame in container.decode(video=0)
            ]
        np.save(folder / f"{path}.npy", np.stack(frames))
    return clock() - started


def cached(videos: Path, paths: Sequence[str], folder: Path, clock: Clock, workers: int) -> float:
    """The seconds of the clip cache."""
    contents = {path: (videos / path).read_bytes() for path in paths}  # the lock's entries; the cache reads them again
    entries = {path: f"{len(content)}:{hashlib.sha256(content).hexdigest()}" for path, content in contents.items()}
    spec, started = CacheSpec(videos, entries, SIDE), clock()
    open_cache(folder, spec, workers, lambda *_: None, lambda _: None)
    return clock() - started


class InMemory:
    """Reads frames of one decoded video."""

    def __init__(self) -> None:
        shape = (64, SIDE, SIDE * WIDTH // HEIGHT, 3)
        self.frames_THWC = np.random.default_rng(0).integers(0, 255, shape, np.uint8)

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames with these indices (None: all of them), uint8 (T, H, W, 3)."""
        return self.frames_THWC if frame_indices is None else self.frames_THWC[np.asarray(frame_indices)]


def views(batches: int = 6, batch: int = 8) -> float:
    """The seconds of making views; reading frames is left out, and the first batch warms up."""
    reader, clip, ids = InMemory(), Clip(frames=16, size=112, resize=SIDE), list(range(batch))
    video = Video(*reader.frames_THWC.shape[:3])
    source = VideoClips(reader, ["memory"] * batch, [video] * batch, clip, torch.device("cpu"))
    seconds = 0.0
    for epoch in range(batches + 1):
        drawn = [source.train_view(number, Augment(flip=0.5), 0, epoch) for number in ids]
        loaded = source.load(ids, drawn)
        started = time.process_time()
        source.finish(ids, drawn, loaded)
        seconds += time.process_time() - started if epoch else 0.0
    return seconds


def main() -> None:
    side = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        videos, folder = Path(name) / "videos", Path(name) / "out"
        for path in (videos, folder):
            path.mkdir()
        paths = [] if side == "views" else write_videos(videos)
        match side:
            case "views":
                seconds = views()
            case "plain":
                seconds = plain(videos, paths, folder, time.process_time)
            case "cache":
                seconds = cached(videos, paths, folder, time.process_time, 1)
            case "wall-1" | "wall-2":
                seconds = cached(videos, paths, folder, time.perf_counter, int(side[-1]))
            case _:
                sys.exit("usage: clips.py plain|cache|wall-1|wall-2|views")
    print(json.dumps({"side": side, "seconds": seconds}))


if __name__ == "__main__":
    main()
