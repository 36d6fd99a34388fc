"""Frames of a video file: decoded in sequence, by count. Seeking by time is wrong on packed B-frames.

Shape legend: T frames, H, W pixels, 3 = RGB.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av import logging
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.video.frame import VideoFrame

DECODER_VERSION = 2  # bumped when decoded pixels change; enters the cache's key
LONGEST = 1_000_000  # frames: a file that gives more is not a clip


@dataclass(frozen=True)
class Footage:
    """What a file holds: decodable frames before the first error, height and width of the upright picture in pixels,
    the time of each frame in seconds, and what is wrong with the file ("" where nothing is)."""

    frames: int
    height: int
    width: int
    times: tuple[float, ...]
    fault: str


@dataclass(frozen=True)
class Decoded:
    """Frames as uint8 (T, H, W, 3), and the footage they are of."""

    frames_THWC: npt.NDArray[np.uint8]
    footage: Footage

    @property
    def fault(self) -> str:
        return self.footage.fault


def iter_frames(path: Path) -> Generator[VideoFrame, None, Footage]:
    """The frames of the best video stream, in order, up to the first error; returns what was found.

    A frame that the decoder had to patch up is an error, and so is a packet that it refuses. A bad file raises nothing.
    """
    logging.set_level(logging.PANIC)
    unreadable = _unreadable(path)
    if unreadable:
        return Footage(0, 0, 0, (), unreadable)
    times: list[float] = []
    shape, promised, fault = (0, 0), 0, ""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                return Footage(0, 0, 0, (), "no video stream")
            rate = float(getattr(stream, "average_rate", None) or 25)
            codec = cast("Any", stream).codec_context
            if codec is None:
                return Footage(0, 0, 0, (), "no decoder for its codec")
            codec.thread_type = ThreadType.NONE  # errors come with their own frame
            packets = [0]
            for frame in _frames(container, stream, packets):
                size = _upright_size(frame)
                if frame.is_corrupt:
                    fault = "a damaged picture"
                elif times and size != shape:
                    fault = "the picture changes its size"
                elif len(times) >= LONGEST:
                    fault = f"more than {LONGEST:,} frames"
                if fault:
                    break
                shape = size
                times.append(frame.time if frame.time is not None else len(times) / rate)
                yield frame
            promised = stream.frames - packets[0]
    except (FFmpegError, ValueError, MemoryError, OverflowError, EOFError, OSError) as error:
        fault = _short(error)
    if fault:
        fault = f"cut after {len(times)} frames: {fault}" if times else f"cannot be decoded: {fault}"
    elif not times:
        fault = "no frame can be decoded"
    elif promised - len(times) > max(2, 0.05 * promised):  # headers are off by one or two in sound files
        fault = f"cut: {len(times)} of {promised} frames"
    return Footage(len(times), *shape, tuple(times), fault)


def _frames(container: Any, stream: Any, discarded: list[int]) -> Iterator[VideoFrame]:
    """Decode packet by packet; counts the packets that the container's edit list takes out."""
    for packet in container.demux(stream):
        discarded[0] += bool(packet.is_discard)
        yield from packet.decode()


def decode(path: Path, shorter_side: int, wanted: Collection[int] | None = None) -> Decoded:
    """Decode the frames before the first error, upright, the shorter side scaled to `shorter_side` pixels.

    Args:
        wanted: frame numbers to keep, in order; all if None. Decoding ends behind the last of them.
    """
    frames: list[npt.NDArray[np.uint8]] = []
    last = max(wanted, default=-1) if wanted is not None else None
    walking, number, footage = iter_frames(path), 0, Footage(0, 0, 0, (), "")
    while True:
        try:
            frame = next(walking)
        except StopIteration as end:
            footage = end.value
            break
        if wanted is None or number in wanted:
            frames.append(pixels(frame, shorter_side))
        if number == last:
            walking.close()
            footage = Footage(number + 1, *_upright_size(frame), (), "")
            break
        number += 1
    stacked = np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)
    return Decoded(stacked, footage)


def inspect(path: Path) -> Footage:
    """Decode a file without keeping a pixel."""
    walking = iter_frames(path)
    while True:
        try:
            next(walking)
        except StopIteration as end:
            return end.value


def scaled(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width with the shorter side scaled to `shorter_side`."""
    scale = shorter_side / max(1, min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixels(frame: VideoFrame, shorter_side: int) -> npt.NDArray[np.uint8]:
    """A frame as uint8 (H, W, 3), upright and scaled."""
    height, width = scaled(frame.height, frame.width, shorter_side)
    picture = cast(
        "npt.NDArray[np.uint8]",
        frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray(),
    )
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _turns(frame: VideoFrame) -> int:
    return round((frame.rotation or 0) / 90) % 4  # display matrix: degrees counter-clockwise


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)


def _unreadable(path: Path) -> str:
    """Why a file is not even opened: FFmpeg waits for ever on a pipe."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "not a file"
        if found.st_size == 0:
            return "zero bytes"
        with path.open("rb"):
            return ""
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _short(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0][:80]


def probe(path: Path) -> tuple[int, int, int]:
    """Frames, height and width that a file's header promises; zeros where it cannot be read."""
    logging.set_level(logging.PANIC)
    if _unreadable(path):
        return 0, 0, 0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                return 0, 0, 0
            seconds = float(container.duration or 0) / 1_000_000
            frames = stream.frames or round(seconds * float(getattr(stream, "average_rate", None) or 25))
            return frames, int(getattr(stream, "height", 0)), int(getattr(stream, "width", 0))
    except (FFmpegError, ValueError, MemoryError, OverflowError, EOFError, OSError):
        return 0, 0, 0
