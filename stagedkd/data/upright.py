"""Set pictures upright: the eight orientations that a display matrix can mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes upright: first transposed, then mirrored left to right, then upside down."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    @classmethod
    def read(cls, frame: VideoFrame) -> Orientation | None:
        """Return the orientation that a frame carries, or None if it carries none.

        The display matrix maps a point (x, y) of the stored picture to (a x + c y, b x + d y). A matrix that is none of
        the eight, such as a rotation by 10 degrees, counts as the nearest of them.
        """
        try:
            # frame.side_data would keep the frame in memory until the next garbage collection: they refer to each other
            matrix = cast("Any", SideDataContainer)(frame).get("DISPLAYMATRIX")
        except ValueError:  # side data of a type that PyAV does not know: its angle is all that can be read then
            return _TURNS[round(frame.rotation / 90) % 4] if frame.rotation else None
        if matrix is None:
            return None
        a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4").tolist()[:5]
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, picture_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return a picture upright."""
        if self == Orientation():
            return picture_HWC
        upright = picture_HWC.transpose(1, 0, 2) if self.transposed else picture_HWC
        upright = upright[:, ::-1] if self.mirrored else upright
        return np.ascontiguousarray(upright[::-1] if self.flipped else upright)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the upright picture."""
        return (width, height) if self.transposed else (height, width)


_TURNS = (  # by quarter turns, counter-clockwise
    Orientation(),
    Orientation(transposed=True, flipped=True),
    Orientation(mirrored=True, flipped=True),
    Orientation(transposed=True, mirrored=True),
)
