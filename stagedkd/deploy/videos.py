"""The clips of a video that a student looks at: as in an evaluation, or a window at every so many seconds.

Shape legend: V views, T frames, H, W pixels, 3 = RGB.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch and PyAV are incomplete.
from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.address import Address
from stagedkd.data.decode import inspect, iter_frames, pixels, scaled
from stagedkd.data.source import VideoFiles
from stagedkd.data.upright import Orientation
from stagedkd.data.video import Picture
from stagedkd.data.views import Video, View, apply_views, eval_views
from stagedkd.errors import DataError
from stagedkd.spec.schema import Clip

Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A window of a video: its beginning and end in seconds, and its views (V, 3, T, H, W), float32 in 0..1."""

    start: float
    end: float
    views_V3THW: Tensor


def video_views(video: str, clip: Clip, clips: int, crops: Literal[1, 3]) -> Tensor:
    """Return the views of a whole video as an evaluation takes them, float32 (V, 3, T, H, W) in 0..1. `video` is an
    address (data/address.py): a path, which may name a part or a pattern of pictures.

    Raises:
        DataError: no frame can be decoded, or it has too few of them and `clip.short` is `refuse`.
    """
    footage = inspect(Address.read(Path(), video))
    _require_frames(video, footage.frames, footage.fault)
    seen = Video(footage.frames, *scaled(footage.height, footage.width, clip.shorter_side), footage.times)
    _require_length(video, clip, seen)
    views = eval_views(clip, clips, crops, seen)
    needed = np.unique(np.concatenate([view.frames for view in views]))
    frames_THWC = VideoFiles(Path(), clip.shorter_side).frames(video, needed)
    return _applied(frames_THWC, needed, views, clip)


def array_views(frames_THW3: Frames, rate: float | None, clip: Clip, clips: int, crops: Literal[1, 3]) -> Tensor:
    """The same for decoded frames, uint8 (T, H, W, 3) RGB, which are scaled as a decoder's. `rate` is their number a
    second, which only `sampling: time` needs.

    Raises:
        DataError: the array has another form, or the rate is missing.
    """
    if frames_THW3.dtype != np.uint8 or frames_THW3.ndim != 4 or frames_THW3.shape[-1] != 3 or not len(frames_THW3):
        form = f"{frames_THW3.dtype} {frames_THW3.shape}"
        raise DataError(f"frames are {form}, not uint8 (T, H, W, 3)", hint="give RGB bytes, frames first")
    if clip.sampling == "time" and rate is None:
        raise DataError(
            "the student samples by time, and the frames have no rate", hint="give rate, in frames a second"
        )
    pictures = np.stack([scaled_frame(frame, clip.shorter_side) for frame in frames_THW3])
    times = np.arange(len(pictures)) / (rate or 1.0)
    count, height, width, _ = pictures.shape
    views = eval_views(clip, clips, crops, Video(count, height, width, times))
    return _applied(pictures, np.arange(len(pictures)), views, clip)


def scaled_frame(frame_HW3: Frames, shorter_side: int) -> Frames:
    """Scale one RGB frame as decoded ones are."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24")
    return pixels(Picture(picture, Orientation(), None), shorter_side)


def windows(video: str, clip: Clip, every: float, length: float | None) -> Generator[Window]:
    """Yield a window at every so many seconds, as far as whole ones reach; a shorter video has one.

    The video is decoded twice, once to see its clock, and frames are kept as long as a window needs them.

    Args:
        every: seconds between the beginnings of two windows. length: seconds of a window, for `sampler: segments` and
            longer windows; None: the clip's own length, or `every` for segments.
    Raises:
        DataError: no frame can be decoded.
    """
    footage = inspect(Address.read(Path(), video))
    _require_frames(video, footage.frames, footage.fault)
    times = np.asarray(footage.times) - (footage.times[0] if len(footage.times) else 0.0)
    if len(times) < footage.frames:
        raise DataError(f"{video} has no clock", hint="leave out --every")
    step = times[-1] / max(1, len(times) - 1) or 0.04
    seconds = length or own_length(clip, step) or every
    height, width = scaled(footage.height, footage.width, clip.shorter_side)
    parts: list[tuple[float, Indices, View]] = []
    for start in _starts(times[-1] + step, every, seconds):
        first, last = np.searchsorted(times, [start - 1e-9, start + seconds - 1e-9])
        first = min(int(first), len(times) - 1)
        last = max(int(last), first + 1)
        (view,) = eval_views(clip, 1, 1, Video(last - first, height, width, times[first:last]))
        parts.append((start, first + view.frames, view))
    for (start, indices, view), frames in zip(parts, _streamed(video, clip, [p[1] for p in parts]), strict=True):
        local = np.unique(indices)
        yield Window(start, min(start + seconds, times[-1] + step), _applied(frames, local, [_at(view, indices)], clip))


def _starts(duration: float, every: float, seconds: float) -> Iterator[float]:
    """The beginnings of the windows."""
    number = 0
    while number == 0 or number * every + seconds <= duration + 1e-6:
        yield number * every
        number += 1


def own_length(clip: Clip, step: float) -> float | None:
    """The seconds of a clip at a video's own pace, `step` seconds a frame; None for segments, which have none."""
    if clip.sampler == "segments":
        return None
    return clip.span / clip.rate if clip.rate else clip.span * step


def _streamed(video: str, clip: Clip, wanted: Sequence[Indices]) -> Generator[Frames]:
    """Yield the frames of each window, by rising indices, each once, in one pass over the video."""
    kept: dict[int, Frames] = {}
    pending, needed = list(wanted), sorted({int(i) for indices in wanted for i in indices})
    turn = 0
    for index, picture in enumerate(iter_frames(Address.read(Path(), video))):
        if turn < len(needed) and index == needed[turn]:
            kept[index] = pixels(picture, clip.shorter_side)
            turn += 1
        while pending and index >= int(pending[0].max()):
            own = np.unique(pending.pop(0))
            yield np.stack([kept[int(i)] for i in own])
            first = min((int(indices.min()) for indices in pending), default=index + 1)
            kept = {at: frame for at, frame in kept.items() if at >= first}
        if not pending:
            return


def _at(view: View, frames: Indices) -> View:
    return replace(view, frames=frames)


def _applied(frames_THWC: Frames, indices: Indices, views: Iterable[View], clip: Clip) -> Tensor:
    """Apply views to the frames that have these rising indices."""
    frames_T3HW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    chosen = list(views)
    pictures = [frames_T3HW[torch.from_numpy(np.searchsorted(indices, view.frames))] for view in chosen]
    return apply_views(pictures, chosen, clip.size)


def _require_frames(video: str, frames: int, fault: str) -> None:
    if not frames:
        raise DataError(f"{video}: {fault or 'no frame can be decoded'}", hint="give a video that can be decoded")


def _require_length(name: str, clip: Clip, video: Video) -> None:
    """Raise DataError if a video is too short for a clip that refuses short ones."""
    if clip.short != "refuse":
        return
    length = video.frames if clip.sampling == "count" else float(video.times[-1] - video.times[0]) * (clip.rate or 1.0)
    if length < clip.span:
        message = f"{name} is too short: {length:.0f} of {clip.span} {'frames' if clip.rate is None else 'ticks'}"
        raise DataError(message, hint="the student was trained with clip.short: refuse; give a longer video")
