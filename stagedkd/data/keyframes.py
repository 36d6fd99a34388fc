"""Decode a window of a long video from a key frame before it, instead of from the beginning of the file.

It is done only where it is proven to give the frames of the sequential decode: a frame is told by its presentation
time, which must be there once for each packet, and the frames behind an early key frame must be equal to the bit.
Decoding begins one key frame earlier than needed, since the frames behind a key frame may refer to those before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.codec.context import ThreadType
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from stagedkd.data.decode import pixels
from stagedkd.data.upright import Orientation
from stagedkd.data.video import ERRORS, Picture, VideoReader, open_video

SOUGHT_FROM = 256  # frames: before, a decode from the beginning takes no longer
PROVEN_WITHIN = 3000  # frames: the key frame of the proof must be among the first
PROVEN = 8  # frames that are compared
REORDERED = 64  # frames: no codec shows a frame further from the place where it is stored
FORMATS, CODECS = {"mov", "matroska"}, {"h264", "hevc", "mpeg4", "vp8", "vp9", "av1"}


@dataclass(frozen=True)
class KeyFrames:
    """Where a video can be entered. times: the presentation time of each frame, in ticks; frame n is the n-th.
    keys: the frames that are key frames. tick: seconds of a tick."""

    times: tuple[int, ...]
    keys: tuple[int, ...]
    tick: float

    def entry(self, first: int) -> int:
        """Return the key frame from which the frames from `first` on are decoded; 0: the beginning of the file."""
        before = bisect_right(self.keys, first) - 2
        return self.keys[before] if before > 0 else 0

    def first_at(self, seconds: float) -> int:
        """Return the first frame at or after a time, counted from the first frame."""
        start = self.times[0] * self.tick
        return next((n for n, time in enumerate(self.times) if time * self.tick - start >= seconds), len(self.times))


def key_frames(path: Path) -> KeyFrames | None:
    """Return the key frames of a video, or None if entering it there is not proven to give the same frames."""
    try:
        found = _listed(path)
        return found if found is not None and _is_proven(path, found) else None
    except ERRORS:
        return None


def _listed(path: Path) -> KeyFrames | None:
    """Read the packets of a video without decoding them; None if they do not tell its frames."""
    with open_video(path) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or not set(container.format.name.split(",")) & FORMATS:
            return None
        if cast("Any", stream).codec_context is None or stream.codec_context.name.removeprefix("lib") not in CODECS:
            return None
        rows: list[tuple[int, bool]] = []
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            rows.append((packet.pts, packet.is_keyframe))
        read = {time: n for n, (time, _) in enumerate(rows)}
        rows.sort()
        if any(abs(n - read[time]) > REORDERED for n, (time, _) in enumerate(rows)):
            return None  # the clock jumps back
        times = tuple(time for time, _ in rows)
        if len(set(times)) < len(times) or stream.time_base is None or not rows or not rows[0][1]:
            return None
        keys = tuple(n for n, (_, key) in enumerate(rows) if key)
        return KeyFrames(times, keys, float(stream.time_base))


def _is_proven(path: Path, found: KeyFrames) -> bool:
    """Compare the frames behind an early key frame with those of a decode from the beginning, to the bit."""
    early = [key for key in found.keys if key < PROVEN_WITHIN]
    if len(early) < 3 or len(found.times) <= SOUGHT_FROM:
        return False
    first = early[2]
    reader = VideoReader(path)
    pictures = reader.pictures()
    try:
        for number, picture in enumerate(islice(pictures, first)):
            if picture.frame.pts != found.times[number]:
                return False
        expected = list(islice(pictures, PROVEN))
    finally:
        pictures.close()
    sought = dict(pictures_from(path, found, first, first + len(expected)))
    pairs = [(picture, sought.get(first + i)) for i, picture in enumerate(expected)]
    return bool(pairs) and all(other is not None and _equal(picture, other) for picture, other in pairs)


def _equal(one: Picture, other: Picture) -> bool:
    same = one.frame.pts == other.frame.pts and one.upright == other.upright
    return same and np.array_equal(one.frame.to_ndarray(), other.frame.to_ndarray())


def window(path: Path, found: KeyFrames, wanted: Sequence[int], shorter_side: int) -> npt.NDArray[np.uint8] | None:
    """Return frames of a video, uint8 (T, H, W, 3), upright and scaled as `decode` does; None if they cannot be had.

    Args:
        wanted: their numbers, rising.
    """
    needed, frames = set(wanted), list[npt.NDArray[np.uint8]]()
    try:
        for number, picture in pictures_from(path, found, wanted[0], wanted[-1] + 1):
            if number in needed:
                frames.append(pixels(picture, shorter_side))
    except ERRORS:
        return None
    return np.stack(frames) if len(frames) == len(wanted) else None


def pictures_from(path: Path, found: KeyFrames, first: int, end: int) -> Generator[tuple[int, Picture]]:
    """Yield the frames from `first` up to, and without, `end` with their numbers.

    Raises:
        ValueError, or an error of FFmpeg: a frame is damaged or unknown; the file must be decoded from its beginning.
    """
    places = {time: n for n, time in enumerate(found.times[found.entry(first) : end], found.entry(first))}
    scaler = VideoReformatter()
    with open_video(path) as container:
        for frame in _frames_from(container, found.times[found.entry(first)]):
            if frame.is_corrupt:
                raise ValueError("a damaged picture")
            number = places.get(frame.pts)
            if number is not None and number >= first:
                yield number, Picture(frame, Orientation.read(frame) or Orientation(), None, scaler)
            if number == end - 1:
                return


def _frames_from(container: InputContainer, time: int) -> Generator[Any]:
    """Decode from the key frame at a time, in ticks of its stream."""
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream), "the caller has found a video stream"
    stream.codec_context.thread_type = ThreadType.NONE
    container.seek(time, stream=stream)
    for packet in container.demux(stream):
        yield from packet.decode()
