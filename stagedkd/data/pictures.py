"""Read a folder of numbered pictures ("rawframes") as the frames of a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from itertools import pairwise
from pathlib import Path
from re import Pattern

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageOps

from stagedkd.data.upright import Orientation
from stagedkd.data.video import FrameReader, Picture, why_unreadable


def numbered(folder: Path, pattern: Pattern[str]) -> list[tuple[int, Path]]:
    """Return the pictures of a folder whose names match, with their numbers, in their order."""
    matches = [(pattern.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(match[1]), path) for match, path in matches if match)


class PictureReader(FrameReader):
    """Reads the pictures of a folder by their numbers.

    A gap in numbers that are otherwise regular is an error, and so is a picture of another size.
    """

    def __init__(self, folder: Path, pattern: Pattern[str]) -> None:
        super().__init__()
        self.folder, self.pattern = folder, pattern

    def pictures(self) -> Generator[Picture]:
        listed = numbered(self.folder, self.pattern)
        if not listed:
            self.refused = "no picture of this name" if self.folder.is_dir() else "missing"
        first, step = (0, 0), _usual_step([number for number, _ in listed])
        last = listed[0][0] - step if listed else 0
        for number, path in listed:
            self.fault = _gap(last, number, step)
            picture = None if self.fault else self._read(path)
            if picture is None:
                return
            if first not in ((0, 0), picture.size):
                (height, width), (tall, wide) = picture.size, first
                self.fault = f"{path.name} has {width} x {height} pixels, those before have {wide} x {tall}"
                return
            first, last = picture.size, number
            yield picture

    def _read(self, path: Path) -> Picture | None:
        """Read a picture; None if it cannot be read."""
        try:
            return Picture(_decoded(path), Orientation(), None)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            reason = why_unreadable(path) or str(error).replace(str(path), path.name)
            self.fault = f"{path.name}: {reason.splitlines()[0][:80]}"
            return None


def _gap(last: int, number: int, step: int) -> str:
    """Return what is wrong with the number of a picture that follows `last`; "" if nothing is."""
    if number == last + step:
        return ""
    if number == last:
        return f"picture {number} is there twice"
    return f"picture {last + step} is missing" if number > last + step else f"picture {number} follows picture {last}"


def _usual_step(numbers: Sequence[int]) -> int:
    """Return the most common difference of neighbours; the smaller one of two that are as common."""
    counts = Counter(after - before for before, after in pairwise(numbers) if after > before)
    return min(counts, key=lambda gap: (-counts[gap], gap), default=1)


def _decoded(path: Path) -> VideoFrame:
    """Decode a picture with Pillow, upright as its EXIF orientation says, as 8-bit RGB."""
    with Image.open(path) as stored:
        stored.load()
        upright = ImageOps.exif_transpose(stored)
        if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would cut the values off at 255
            grey = np.asarray(upright).astype(np.int64) >> 8
            upright = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        return VideoFrame.from_ndarray(np.asarray(upright.convert("RGB")), format="rgb24")
