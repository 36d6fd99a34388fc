"""Write the clips of the clip cache frame by frame, so that no long clip is in memory as a whole.

Shape legend: H, W pixels, 3 = RGB.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.address import Address
from stagedkd.data.decode import Footage, iter_frames, pixels

BLOCK = 32  # frames that share a checksum, which is compared when one of them is first read
OWN = 1 << 25  # bytes: a larger clip goes to a file of its own while it is decoded
QUALITY = 95
Form = Literal["raw", "jpeg"]


@dataclass(frozen=True)
class StoredClip:
    """A clip as it is stored.

    Attributes:
        parts: its bytes, if they are in memory; () if they are in a file of their own.
        size: the number of its bytes. Raw frames; or JPEGs, then as uint64 where each begins, and where the last ends.
        height, width: of the stored frames, in pixels.
        crcs: the checksum of every block of frames; for JPEGs, then that of the list of places.
        footage: what the clip holds.
    """

    parts: tuple[bytes, ...]
    size: int
    height: int
    width: int
    crcs: tuple[int, ...]
    footage: Footage


class Stopped(Exception):
    """The build was stopped while a clip was being decoded."""


def store_clip(address: Address, shorter_side: int, form: Form, own: Path | None, stop: Event) -> StoredClip:
    """Decode a clip and store it.

    Args:
        own: the file for a clip of more than `OWN` bytes; None keeps no bytes at all, for a comparison of checksums.
        stop: ends the decoding, with Stopped.
    """
    decoding, (height, width) = iter_frames(address), (1, 1)
    with _Bytes(own) as stored:
        ends, crcs, crc = [0], list[int](), 0
        while True:
            try:
                frame_HW3 = pixels(next(decoding), shorter_side)
            except StopIteration as end:
                footage: Footage = end.value
                break
            if stop.is_set():
                decoding.close()
                raise Stopped
            blob = frame_HW3.tobytes() if form == "raw" else _jpeg(frame_HW3)
            stored.write(blob)
            crc, (height, width, _) = zlib.crc32(blob, crc), frame_HW3.shape
            ends.append(ends[-1] + len(blob))
            if (len(ends) - 1) % BLOCK == 0:
                crcs.append(crc)
                crc = 0
        if (len(ends) - 1) % BLOCK:
            crcs.append(crc)
        if form == "jpeg":
            places = np.array(ends, np.uint64).tobytes()
            crcs.append(zlib.crc32(places))
            stored.write(places)
        return StoredClip(stored.finish(), stored.size, height, width, tuple(crcs), footage)


class _Bytes:
    """The bytes of a clip: in memory up to `OWN`, then in a file, which gets its name when it is whole."""

    def __init__(self, own: Path | None) -> None:
        self.own, self.size = own, 0
        self.parts: list[bytes] = []
        self.stream: BinaryIO | None = None

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()

    def write(self, blob: bytes) -> None:
        self.size += len(blob)
        if self.own is None:
            return
        if self.stream is not None:
            self.stream.write(blob)
            return
        self.parts.append(blob)
        if self.size > OWN:
            self.stream = self.own.with_suffix(".making").open("wb")
            self.stream.writelines(self.parts)
            self.parts = []

    def finish(self) -> tuple[bytes, ...]:
        """Return the bytes that are in memory; () if they are in the file."""
        if self.own is not None and self.stream is not None:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.own.with_suffix(".making").replace(self.own)
        return tuple(self.parts)


def _jpeg(frame_HW3: npt.NDArray[np.uint8]) -> bytes:
    from torchvision.io import encode_jpeg  # it takes seconds to import

    encoded = cast("torch.Tensor", encode_jpeg(torch.from_numpy(frame_HW3).permute(2, 0, 1), QUALITY))
    return encoded.numpy().tobytes()
