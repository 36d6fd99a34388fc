"""Decode the frames of a video file in sequence and count them. Seeking by time is wrong on packed B-frames.

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

DECODER_VERSION = 2  # raised when decoded pixels change; part of the cache's key
LONGEST = 1_000_000  # frames: a file with more is not a clip


@dataclass(frozen=True)
class Footage:
    """What a file holds: the number of frames that decode before the first error, height and width of the upright
    picture in pixels, the time of each frame in seconds, and what is wrong with the file ("" if nothing is)."""

    frames: int
    height: int
    width: int
    times: tuple[float, ...]
    fault: str


@dataclass(frozen=True)
class Decoded:
    """Decoded frames, uint8 (T, H, W, 3), and what the file holds."""

    frames_THWC: npt.NDArray[np.uint8]
    footage: Footage

    @property
    def fault(self) -> str:
        return self.footage.fault


def iter_frames(path: Path) -> Generator[VideoFrame, None, Footage]:
    """Yield the frames of the best video stream in order, up to the first error; return what the file holds.

    A frame that the decoder had to conceal errors in counts as an error, and so does a packet that it refuses. A bad
    file raises nothing.
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
            codec.thread_type = ThreadType.NONE  # so that an error is reported with the frame it belongs to
            discarded = [0]
            for frame in _frames(container, stream, discarded):
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
            promised = stream.frames - discarded[0]
    except (FFmpegError, ValueError, MemoryError, OverflowError, EOFError, OSError) as error:
        fault = _reason(error)
    if fault:
        fault = f"cut after {len(times)} frames: {fault}" if times else f"cannot be decoded: {fault}"
    elif not times:
        fault = "no frame can be decoded"
    elif promised - len(times) > max(2, 0.05 * promised):  # the headers of intact files are off by one or two
        fault = f"cut: {len(times)} of {promised} frames"
    return Footage(len(times), *shape, tuple(times), fault)


def _frames(container: Any, stream: Any, discarded: list[int]) -> Iterator[VideoFrame]:
    """Decode packet by packet, and count in `discarded` the packets that the container's edit list removes."""
    for packet in container.demux(stream):
        discarded[0] += bool(packet.is_discard)
        yield from packet.decode()


def decode(path: Path, shorter_side: int, wanted: Collection[int] | None = None) -> Decoded:
    """Decode the frames before the first error, upright, the shorter side scaled to `shorter_side` pixels.

    Args:
        wanted: indices of the frames to keep (None: all); they are returned in order. Decoding ends after the last.
    """
    frames: list[npt.NDArray[np.uint8]] = []
    last = max(wanted, default=-1) if wanted is not None else None
    decoding, index, footage = iter_frames(path), 0, Footage(0, 0, 0, (), "")
    while True:
        try:
            frame = next(decoding)
        except StopIteration as end:
            footage = end.value
            break
        if wanted is None or index in wanted:
            frames.append(pixels(frame, shorter_side))
        if index == last:
            decoding.close()
            footage = Footage(index + 1, *_upright_size(frame), (), "")
            break
        index += 1
    stacked = np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)
    return Decoded(stacked, footage)


def inspect(path: Path) -> Footage:
    """Decode a file to see what it holds, without keeping a pixel."""
    decoding = iter_frames(path)
    while True:
        try:
            next(decoding)
        except StopIteration as end:
            return end.value


def scaled(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return height and width with the shorter side scaled to `shorter_side`."""
    scale = shorter_side / max(1, min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixels(frame: VideoFrame, shorter_side: int) -> npt.NDArray[np.uint8]:
    """Return a frame as uint8 (H, W, 3), upright and scaled."""
    height, width = scaled(frame.height, frame.width, shorter_side)
    picture = cast(
        "npt.NDArray[np.uint8]",
        frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray(),
    )
    turns = _turns(frame)
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _turns(frame: VideoFrame) -> int:
    """Return the quarter turns, counter-clockwise, that set a frame upright."""
    return round((frame.rotation or 0) / 90) % 4  # the display matrix gives degrees counter-clockwise


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Return height and width of the upright picture."""
    return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)


def _unreadable(path: Path) -> str:
    """Return why a file must not be opened, or "" if it can be. FFmpeg would wait for ever on a pipe."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        if status.st_size == 0:
            return "zero bytes"
        with path.open("rb"):
            return ""
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message, at most 80 characters."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0][:80]


def probe(path: Path) -> tuple[int, int, int]:
    """Return frames, height and width as a file's header states them; zeros if it cannot be read."""
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
