"""Videos made for tests."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (40, 32), noisy: bool = False) -> None:
    """A video whose frame number can be read from its brightness, or one of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), (20 + 10 * number) % 250, np.uint8)
            if noisy:
                picture = np.random.default_rng(number).integers(0, 255, picture.shape, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def bad_files(folder: Path) -> dict[str, str]:
    """Kinds of bad files, and a word of the reason each must be listed with."""
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "good.avi", 40, noisy=True)
    write_video(folder / "good.mp4", 40, noisy=True)
    good, mp4 = (folder / "good.avi").read_bytes(), (folder / "good.mp4").read_bytes()
    dice = np.random.default_rng(0)
    flipped = bytearray(good)
    for place in dice.integers(len(good) // 2, len(good) * 3 // 4, 400):
        flipped[place] ^= 1 << int(dice.integers(8))
    blobs = {
        "zero.avi": b"",
        "garbage.avi": dice.bytes(5000),
        "page.mp4": b"<html>not found</html>",
        "text.mp4": b"plain words\n" * 50,
        "cut.avi": good[: len(good) // 3],
        "header.avi": good[:200],
        "no_index.mp4": mp4[: len(mp4) // 2],
        "one_byte.mkv": b"x",
        "nulls.avi": bytes(4096),
        "flipped.avi": bytes(flipped),
        "codec.avi": good.replace(b"FMP4", b"ZZZZ").replace(b"fmp4", b"zzzz"),
        "picture.avi": b"\x89PNG\r\n\x1a\n" + dice.bytes(300),
        "zip.mp4": b"PK\x03\x04" + dice.bytes(500),
        "middle.avi": good[: len(good) // 2] + bytes(len(good) // 4) + good[len(good) * 3 // 4 :],
    }
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    (folder / "folder.avi").mkdir()
    (folder / "link.avi").symlink_to(folder / "nowhere.avi")
    os.mkfifo(folder / "pipe.avi")
    return {
        "zero.avi": "zero bytes",
        "garbage.avi": "cannot be decoded",
        "page.mp4": "cannot be decoded",
        "cut.avi": "cut",
        "header.avi": "",
        "sound.mp4": "no video stream",
        "none.avi": "missing",
        "text.mp4": "cannot be decoded",
        "no_index.mp4": "cannot be decoded",
        "one_byte.mkv": "cannot be decoded",
        "nulls.avi": "cannot be decoded",
        "flipped.avi": "damaged picture",
        "codec.avi": "",
        "picture.avi": "",
        "zip.mp4": "cannot be decoded",
        "middle.avi": "cut",
        "folder.avi": "not a file",
        "link.avi": "a link to nothing",
        "pipe.avi": "not a file",
    }
