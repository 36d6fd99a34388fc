"""Frames of a video file: decoded once, in sequence, by count. Seeking by time is wrong on packed B-frames.

Shape legend: T frames, H, W pixels, C = 3 (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av import logging
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.video.frame import VideoFrame

DECODER_VERSION = 1  # bumped when decoded pixels change; enters the cache's key


@dataclass(frozen=True)
class Decoded:
    """Frames as uint8 (T, H, W, 3), and what is wrong with the file ("" where nothing is)."""

    frames_THWC: npt.NDArray[np.uint8]
    fault: str


def decode(path: Path, shorter_side: int) -> Decoded:
    """Decode all frames before the first error, rotated upright, the shorter side scaled to `shorter_side` pixels.

    Never raises for a bad file: `fault` says what is wrong, and the frames before it are there.
    """
    logging.set_level(logging.PANIC)
    if not path.is_file():
        return Decoded(_nothing(), "missing")
    if path.stat().st_size == 0:
        return Decoded(_nothing(), "zero bytes")
    frames: list[npt.NDArray[np.uint8]] = []
    promised = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return Decoded(_nothing(), "no video stream")
            stream = container.streams.best("video") or container.streams.video[0]
            promised = stream.frames
            stream.codec_context.thread_type = ThreadType.NONE  # frame order and errors by count
            for frame in container.decode(stream):
                assert isinstance(frame, VideoFrame)
                pixels = _pixels(frame, shorter_side)
                if frames and pixels.shape != frames[0].shape:
                    return Decoded(np.stack(frames), f"the picture changes its size at frame {len(frames)}")
                frames.append(pixels)
    except (FFmpegError, ValueError, MemoryError, OverflowError) as error:
        if not frames:
            return Decoded(_nothing(), f"cannot be decoded: {_short(error)}")
        return Decoded(np.stack(frames), f"cut: error after frame {len(frames)} ({_short(error)})")
    if not frames:
        return Decoded(_nothing(), "no frame can be decoded")
    cut = promised - len(frames) > max(2, 0.05 * promised)  # headers are off by one or two in sound files
    fault = f"cut: {len(frames)} of {promised} frames" if cut else ""
    return Decoded(np.stack(frames), fault)


def _pixels(frame: VideoFrame, shorter_side: int) -> npt.NDArray[np.uint8]:
    scale = shorter_side / min(frame.width, frame.height)
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    picture = cast(
        "npt.NDArray[np.uint8]",
        frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray(),
    )
    turns = round((frame.rotation or 0) / 90) % 4  # display matrix: degrees counter-clockwise
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _nothing() -> npt.NDArray[np.uint8]:
    return np.zeros((0, 1, 1, 3), np.uint8)


def _short(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0][:80]
