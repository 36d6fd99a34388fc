"""Decode the frames of a clip in sequence and count them. Seeking by time is wrong on packed B-frames.

A clip is a video, a part of one, or a folder of numbered pictures; its address says which.

Shape legend: T frames, H, W pixels, 3 = RGB.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from stagedkd.data.address import Address, Part
from stagedkd.data.pictures import PictureReader, numbered
from stagedkd.data.video import FrameReader, Picture, VideoReader, probe_video

DECODER_VERSION = 3  # raised when decoded pixels change; part of the cache's key
LONGEST = 1_000_000  # frames: a file with more is not a clip


@dataclass(frozen=True)
class Footage:
    """What a clip holds.

    Attributes:
        frames: the number of frames that decode before the first error.
        height, width: of the upright picture, in pixels.
        times: the time of each frame in seconds, never falling; empty for pictures, which have no clock. Kept as an
            array of float64, since the clips of a large set have many frames.
        fault: what is wrong with the clip; "" if nothing is.
        note: what was done to make its frames whole and its clock run on; "" if nothing was.
    """

    frames: int
    height: int
    width: int
    times: Sequence[float]
    fault: str
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", array("d", self.times))


@dataclass(frozen=True)
class Decoded:
    """Decoded frames, uint8 (T, H, W, 3), and what the clip holds."""

    frames_THWC: npt.NDArray[np.uint8]
    footage: Footage

    @property
    def fault(self) -> str:
        return self.footage.fault


def iter_frames(address: Address) -> Generator[Picture, None, Footage]:
    """Yield the frames of a clip in order, up to the first error; return what it holds. A bad clip raises nothing.

    Decoding ends with the part that the address names.
    """
    pattern, part = address.pictures, address.part
    if pattern is not None and part is not None and part.unit == "seconds":
        return Footage(0, 0, 0, (), "pictures have no clock: name the part by its frames")
    reader = VideoReader(address.file) if pattern is None else PictureReader(address.file.parent, pattern)
    decoding, cut = reader.pictures(), _Cut(part)
    size, times, count = (0, 0), list[float](), 0
    while not cut.over and (picture := next(decoding, None)) is not None:
        if not cut.holds(picture):
            continue
        if count >= LONGEST:
            reader.fault = f"more than {LONGEST:,} frames"
            break
        size, count = picture.size, count + 1
        if picture.time is not None:
            times.append(picture.time)
        yield picture
    decoding.close()
    if len(times) > 1 and times[0] == times[-1]:  # a file without times
        times = [i * reader.step for i in range(len(times))]
    return Footage(count, *size, times, _fault(reader, cut, count), reader.note)


class _Cut:
    """Finds the frames of a part."""

    def __init__(self, part: Part | None) -> None:
        self.part, self.read = part, 0
        self.start = self.last = 0.0  # the times of the first frame of the video, and of the last one that was read
        self.over = False  # whether the part is complete

    def holds(self, picture: Picture) -> bool:
        """Return whether the next frame of the video lies in the part."""
        index, self.read = self.read, self.read + 1
        self.last = picture.time or 0.0
        self.start = self.last if not index else self.start
        if self.part is None:
            return True
        place = index if self.part.unit == "frames" else self.last - self.start
        # the frame that follows a part by frames need not be decoded
        self.over = place >= self.part.end - (1 if self.part.unit == "frames" else 0)
        return self.part.start <= place < self.part.end

    def shortage(self, count: int, step: float) -> str:
        """Return what a part lacks of which all `count` frames were read; "" if nothing."""
        if self.part is None or self.over:
            return ""
        if self.part.unit == "frames":
            return f"cut: {count} of {int(self.part.end - self.part.start)} frames"
        seconds = self.last - self.start + step
        if seconds >= self.part.end - step:  # tables round to tenths of a second, and longer than the video
            return ""
        return f"cut: {count} frames, since the video ends after {seconds:.2f} of {self.part.end:g} seconds"


def _fault(reader: FrameReader, cut: _Cut, count: int) -> str:
    """Return what is wrong with a clip of which `count` frames were read; "" if nothing is."""
    if reader.refused:
        return reader.refused
    if reader.fault:
        return f"cut after {count} frames: {reader.fault}" if count else f"cannot be decoded: {reader.fault}"
    if not cut.read:
        return "no frame can be decoded"
    short = cut.shortage(count, reader.step)
    if not count:
        return short.replace("cut: 0 frames, since", "no frame in this part:") or "no frame lies in this part"
    return short or (f"cut: {count} of {count + reader.missing} frames" if reader.missing else "")


def decode(address: Address, shorter_side: int, wanted: Collection[int] | None = None) -> Decoded:
    """Decode the frames before the first error, upright, the shorter side scaled to `shorter_side` pixels.

    Args:
        wanted: indices of the frames to keep (None: all); they are returned in order. Decoding ends after the last, and
            no other frame is converted.
    """
    frames: list[npt.NDArray[np.uint8]] = []
    last = max(wanted, default=-1) if wanted is not None else None
    decoding, index, footage = iter_frames(address), 0, Footage(0, 0, 0, (), "")
    while True:
        try:
            picture = next(decoding)
        except StopIteration as end:
            footage = end.value
            break
        if wanted is None or index in wanted:
            frames.append(pixels(picture, shorter_side))
        if index == last:
            decoding.close()
            footage = Footage(index + 1, *picture.size, (), "")
            break
        index += 1
    stacked = np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)
    return Decoded(stacked, footage)


def inspect(address: Address) -> Footage:
    """Decode a clip to see what it holds, without keeping a pixel."""
    decoding = iter_frames(address)
    while True:
        try:
            next(decoding)
        except StopIteration as end:
            return end.value


def scaled(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return height and width with the shorter side scaled to `shorter_side`."""
    scale = shorter_side / max(1, min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixels(picture: Picture, shorter_side: int) -> npt.NDArray[np.uint8]:
    """Return a picture as uint8 (H, W, 3), upright and scaled."""
    frame = picture.frame
    height, width = scaled(frame.height, frame.width, shorter_side)
    # by default swscale starts a thread for every core, which takes longer than a picture; cores decode other clips
    scale = partial(picture.scaler.reformat, format="rgb24", interpolation="AREA", threads=1)
    stored = cast("npt.NDArray[np.uint8]", scale(frame, width=width, height=height).to_ndarray())
    return picture.upright.apply(stored)


def probe(address: Address) -> tuple[int, int, int]:
    """Return frames, height and width of a clip as the header of its file states them; zeros if it cannot be read."""
    pattern, part = address.pictures, address.part
    if pattern is None:
        frames, height, width, rate = probe_video(address.file)
    else:
        paths, rate = [path for _, path in numbered(address.file.parent, pattern)], 0.0
        try:
            with Image.open(paths[0]) as picture:
                frames, (width, height) = len(paths), picture.size
        except (IndexError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return 0, 0, 0
    if part is not None:
        unit = rate if part.unit == "seconds" else 1.0
        frames = max(0, min(frames, round(part.end * unit)) - round(part.start * unit))
    return frames, height, width
