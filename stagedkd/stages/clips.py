"""Open the clips of a data artifact as a `ClipSource` that reads the clip cache or the video files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec, ClipCache
from stagedkd.data.cache_build import open_cache
from stagedkd.data.decode import Footage, inspect
from stagedkd.data.seek import SeekingFiles, proven, require_torchcodec
from stagedkd.data.source import ClipSource, Reader, SimulatedClips, VideoClips, VideoFiles, videos_of
from stagedkd.data.views import Video, largest_box
from stagedkd.plan.lock import Lock, data_id
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.schema import Clip, Simulated, Videos, sides
from stagedkd.stages.context import Session
from stagedkd.stages.tables import read_table, read_times
from stagedkd.store.store import Artifact


def open_source(session: Session, data: Artifact, clip: Clip, device: torch.device) -> ClipSource:
    """Open the source of the clips of a data artifact."""
    section = data.manifest.work.data_set
    content = data.read("clips.parquet")
    table = read_table(content, "path", "split", "frames", "height", "width")
    if isinstance(section, Simulated):
        return SimulatedClips(section, table["split"], clip, device)
    assert isinstance(section, Videos)
    videos = videos_of(table, clip, read_times(content) if clip.sampling == "time" else None)
    _note_enlarged(session, clip, videos)
    return VideoClips(_reader(session, section, clip), table["path"], videos, clip, device)


def clips_of_split(data: Artifact, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids of the clips of a split, and their true labels. It gives no truth of another split: what a training is
    validated by must not hold the hidden labels of the clips that it trains on."""
    splits = read_table(data.read("clips.parquet"), "split")["split"]
    clip_ids = np.array([i for i, of in enumerate(splits) if of == split], np.int64)
    return clip_ids, np.array(read_table(data.read("truth.parquet"))["label"], np.int64)[clip_ids]


def _note_enlarged(session: Session, clip: Clip, videos: Sequence[Video]) -> None:
    """Say so if the decoded frames are too small for crops of the view's size. That takes a `clip.resize` below the
    longer side of the view, and videos of another shape."""
    height, width = sides(clip.size)
    boxes = [largest_box(clip, video) for video in videos]
    small = [(tall, wide) for tall, wide in boxes if tall < height - 1 or wide < width - 1]
    if small:
        text = f"crops of {len(small)} of {len(videos)} videos are enlarged, from {small[0][0]}x{small[0][1]} or so to"
        session.listener.note(f"{text} {height}x{width}: raise clip.resize, which is {clip.resize}")


def _reader(session: Session, data: Videos, clip: Clip) -> Reader:
    """The clip cache, or the video files if the spec has no cache. Both give the same pixels."""
    if session.plan.clip.cache == "none":
        root = videos_root(data, session.runtime)
        return (SeekingFiles if clip.decoder == "torchcodec" else VideoFiles)(root, clip.shorter_side)
    return open_clips(session, data, clip)


def videos_root(data: Videos, runtime: Runtime) -> Path:
    """The folder that a data set's paths are relative to."""
    return data.folder_below(runtime.folder("data_dir"))


def cache_spec(data: Videos, clip: Clip, lock: Lock, runtime: Runtime) -> CacheSpec:
    """Describe the clip cache of a data set: its root, files, frame size and pixel format."""
    files = lock.data[str(data_id(data))].files
    pixel_format = "jpeg" if clip.cache == "jpeg" else "raw"
    return CacheSpec(videos_root(data, runtime), files, clip.shorter_side, pixel_format)


def open_clips(session: Session, data: Videos, clip: Clip) -> ClipCache:
    """Open the clip cache of a data set on the disk. Build it first if it does not exist."""

    def progress(done: int, of: int) -> None:
        session.stop.check()
        session.listener.count("clips decoded", done, of)

    spec = cache_spec(data, clip, session.plan.lock, session.runtime)
    return open_cache(session.runtime.folder("cache"), spec, workers(session.runtime), progress, session.listener.note)


def workers(runtime: Runtime) -> int:
    """The number of threads that read clips."""
    return runtime.workers or 2


def footage_of(session: Session, data: Videos, clip: Clip) -> dict[str, Footage]:
    """The footage of every file, by path: from the clip cache, or by decoding all files without keeping a pixel."""
    if session.plan.clip.cache != "none":
        return dict(open_clips(session, data, clip).footages())
    root = videos_root(data, session.runtime)
    inspect_file = proven if clip.decoder == "torchcodec" else inspect
    if inspect_file is proven:
        require_torchcodec()
    paths = sorted(session.plan.lock.data[str(data_id(data))].files)
    footages: dict[str, Footage] = {}
    with ThreadPoolExecutor(workers(session.runtime)) as pool:
        for path, footage in zip(
            paths, pool.map(inspect_file, [Address.read(root, path) for path in paths]), strict=True
        ):
            footages[path] = footage
            session.listener.count("clips inspected", len(footages), len(paths))
            if session.stop.get() is not None:
                pool.shutdown(cancel_futures=True)
                session.stop.check()
    return footages
