"""Random access to video files with torchcodec, for files where it gives the same frames as a sequential decode.

torchcodec seeks instead of decoding every frame, but returns wrong frames on some files (packed B-frames, as in
UCF101). So each file is compared with the sequential decode when the data set is indexed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data import functional as tv
from stagedkd.data.address import Address
from stagedkd.data.decode import Footage, inspect, iter_frames, pixels, scaled
from stagedkd.errors import UsageError

THUMB = 16  # pixels of the shorter side, for comparison
PROBES = 24  # frames of a file that are compared
SLACK = 0.75  # of 255: how much nearer another frame may be, since decoders differ in their colours


class SeekingFiles:
    """Reads the frames of videos by index with torchcodec."""

    def __init__(self, root: Path, shorter_side: int) -> None:
        require_torchcodec()
        self.root, self.shorter_side = root, shorter_side

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames with these indices (None: all of them), uint8 (T, H, W, 3)."""
        frames_T3HW = sought(
            Address.read(self.root, path), None if frame_indices is None else [int(i) for i in frame_indices]
        )
        size = scaled(frames_T3HW.shape[-2], frames_T3HW.shape[-1], self.shorter_side)
        return tv.resize(frames_T3HW, list(size), antialias=True).permute(0, 2, 3, 1).contiguous().numpy()


def require_torchcodec() -> None:
    """Raise UsageError if torchcodec is not installed or finds no FFmpeg."""
    try:
        import torchcodec  # noqa: F401  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:
        hint = "run: pip install 'stagedkd[torchcodec]' and install FFmpeg's libraries; or set clip.decoder: pyav"
        raise UsageError(f"clip.decoder: torchcodec cannot be used: {str(error).splitlines()[0]}", hint=hint) from None


def sought(address: Address, frame_indices: Sequence[int] | None) -> Tensor:
    """Read frames of a clip by random access (None: all of them), uint8 (T, 3, H, W)."""
    decoder, first, count = _opened(address)
    return decoder.get_frames_at([first + i for i in (range(count) if frame_indices is None else frame_indices)]).data


def _opened(address: Address) -> tuple[Any, int, int]:
    """Return torchcodec's decoder of a video, the first frame of the clip in it, and the clip's number of frames."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore

    decoder = VideoDecoder(str(address.file), seek_mode="exact")
    if address.part is None:
        return decoder, 0, len(decoder)
    first = int(address.part.start)
    return decoder, first, max(0, min(int(address.part.end), len(decoder)) - first)


def proven(address: Address) -> Footage:
    """Return what a clip holds, with a fault if torchcodec gives other frames than a sequential decode."""
    advice = "use clip.decoder: pyav"
    if address.pictures is not None:
        return replace(inspect(address), frames=0, fault=f"torchcodec reads no folders of pictures: {advice}")
    if address.part is not None and address.part.unit == "seconds":
        return replace(inspect(address), frames=0, fault=f"torchcodec reads no parts by seconds: {advice}")
    probes, error, total = _probes(address)
    decoding, rows = iter_frames(address), list[list[float]]()
    own: dict[int, Tensor] = {}
    while True:
        try:
            thumb = torch.from_numpy(pixels(next(decoding), THUMB)).permute(2, 0, 1).float()
        except StopIteration as end:
            footage: Footage = end.value
            break
        if len(rows) in probes:
            own[len(rows)] = thumb
        rows.append([_gap(thumb, picture) for picture in probes.values()])
    if not footage.frames:
        return footage
    if error and not (footage.fault and probes):  # where a file is damaged, torchcodec may fail, too
        return replace(footage, frames=0, fault=f"torchcodec cannot read it: {error}")
    fault = _difference(probes, own, np.array(rows))
    if not fault and not footage.fault and total != footage.frames:
        fault = f"torchcodec counts {total} frames, not {footage.frames}"
    return replace(footage, frames=0, fault=f"{fault}: {advice}") if fault else footage


def _probes(address: Address) -> tuple[dict[int, Tensor], str, int]:
    """Read up to 24 frames with torchcodec, one at a time.

    Returns:
        small pictures, float32 (3, H, W), by frame index, up to the first that cannot be read; why that cannot be read,
        or ""; and the number of all frames.
    """
    probes: dict[int, Tensor] = {}
    total = 0
    try:
        decoder, first, total = _opened(address)
        for index in sorted({int(i) for i in np.linspace(0, total - 1, min(total, PROBES))}):
            picture = decoder.get_frames_at([first + index]).data[0]
            size = scaled(picture.shape[-2], picture.shape[-1], THUMB)
            probes[index] = tv.resize(picture.float(), list(size), antialias=True)
    except Exception as error:
        return probes, str(error).splitlines()[0][:80], total
    return probes, "", total


def _gap(one_3HW: Tensor, other_3HW: Tensor) -> float:
    """Return the mean difference of two pictures, of 255; 255 if they have different shapes."""
    return float((one_3HW - other_3HW).abs().mean()) if one_3HW.shape == other_3HW.shape else 255.0


def _difference(probes: Mapping[int, Tensor], own: Mapping[int, Tensor], gaps_TP: npt.NDArray[np.float64]) -> str:
    """Return how a frame by torchcodec differs from the sequential decode; "" if all are the same pictures."""
    for column, (index, picture) in enumerate(probes.items()):
        if index not in own:
            continue
        gap, nearest = gaps_TP[index, column], int(gaps_TP[:, column].argmin())
        if gap - gaps_TP[nearest, column] > SLACK:
            return f"torchcodec gives frame {nearest} for frame {index}"
        if gap > SLACK + min(_gap(own[index], turned) for turned in _turned(picture)):
            return f"torchcodec does not set frame {index} upright"
    return ""


def _turned(picture_3HW: Tensor) -> list[Tensor]:
    """Return the seven other orientations of a picture."""
    both = (picture_3HW, picture_3HW.transpose(1, 2))
    return [one.flip(dims) for one in both for dims in ((), (1,), (2,), (1, 2))][1:]
