"""The address of a clip: a video, a part of a video, or a folder of numbered pictures. Torch-free.

An address is text: a path below the data root, in one of these forms.

    walk/clip1.mp4                 a video
    walk/long.mp4#t=1.5,4          its frames from 1.5 s up to, and without, 4 s
    walk/long.mp4#f=30,60          its frames 30 to 59, counted from 0
    walk/clip1/img_{:05}.jpg       the pictures img_00001.jpg, img_00002.jpg, ... ("rawframes"), in their order
    walk/clip1/img_{:05}.jpg#f=0,8 the first eight of them
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Unit = Literal["seconds", "frames"]
_PART = re.compile(r"#(?P<unit>[tf])=(?P<start>\d+(?:\.\d+)?),(?P<end>\d+(?:\.\d+)?)$")
_PATTERN = re.compile(r"\{(?::0(?P<width>\d+)d?)?\}")


@dataclass(frozen=True)
class Part:
    """A part of a video, from `start` up to and without `end`: in seconds, or in frames counted from 0."""

    unit: Unit
    start: float
    end: float

    def __str__(self) -> str:
        if self.unit == "frames":
            return f"#f={int(self.start)},{int(self.end)}"
        start, end = (f"{seconds:.6f}".rstrip("0").rstrip(".") for seconds in (self.start, self.end))
        return f"#t={start},{end}"


@dataclass(frozen=True)
class Address:
    """Where the frames of a clip are.

    file: the video; or the folder of the pictures, followed by the pattern of their names. part: None for all frames.
    """

    file: Path
    part: Part | None = None

    @classmethod
    def read(cls, root: Path, text: str) -> Address:
        """Read an address. `root` is the folder that it is relative to."""
        match = _PART.search(text)
        if match is None:
            return cls(root / text)
        unit: Unit = "seconds" if match["unit"] == "t" else "frames"
        return cls(root / text[: match.start()], Part(unit, float(match["start"]), float(match["end"])))

    @property
    def pictures(self) -> re.Pattern[str] | None:
        """Matches the names of the pictures in `file.parent`; group 1 is the number. None for a video."""
        place = _PATTERN.search(self.file.name)
        if place is None:
            return None
        number = rf"(\d{{{place['width']},}})" if place["width"] else r"(\d+)"
        before, after = self.file.name[: place.start()], self.file.name[place.end() :]
        return re.compile(re.escape(before) + number + re.escape(after))


def without_part(text: str) -> tuple[str, str]:
    """Split an address into its path, and its part as text ("" if it names all frames)."""
    match = _PART.search(text)
    return (text[: match.start()], match[0]) if match else (text, "")


def is_plain(path: str) -> bool:
    """Return whether the path of a file would be read as that file alone."""
    return not without_part(path)[1] and _PATTERN.search(path.rpartition("/")[2]) is None
