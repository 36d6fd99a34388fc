"""Random access to video files with torchcodec, where it is proven to give the frames of a sequential decode.

It seeks, which spares decoding what is not wanted, and returns wrong frames on some files (packed B-frames, as in
UCF101): so each file is held against the sequential decode when the data set is indexed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stagedkd.data.decode import Footage, decode, scaled
from stagedkd.errors import UsageError

THUMB = 16  # pixels of the shorter side, for comparison
PROBES = 24  # frames of a file that are compared
SLACK = 0.75  # of 255: how much nearer another frame may be; decoders differ in their colours


class SeekingFiles:
    """Reads frames by number with torchcodec."""

    def __init__(self, root: Path, shorter_side: int) -> None:
        require_torchcodec()
        self.root, self.shorter_side = root, shorter_side

    def frames(self, path: str, numbers: Sequence[int] | npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3)."""
        got = sought(self.root / path, None if numbers is None else [int(n) for n in numbers])
        size = scaled(got.shape[-2], got.shape[-1], self.shorter_side)
        return tv.resize(got, list(size), antialias=True).permute(0, 2, 3, 1).contiguous().numpy()


def require_torchcodec() -> None:
    """Raises UsageError: it is not there, or finds no FFmpeg."""
    try:
        import torchcodec  # noqa: F401  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:
        hint = "pip install 'stagedkd[torchcodec]', with FFmpeg's libraries on the system; or clip.decoder: pyav"
        raise UsageError(f"clip.decoder: torchcodec cannot be used: {str(error).splitlines()[0]}", hint=hint) from None


def sought(path: Path, numbers: Sequence[int] | None) -> Tensor:
    """Frames by random access, all of them if no numbers are given: uint8 (T, 3, H, W)."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore

    decoder = VideoDecoder(str(path), seek_mode="exact")
    return decoder.get_frames_at(list(range(len(decoder))) if numbers is None else list(numbers)).data


def proven(path: Path) -> Footage:
    """What a file holds, with a fault if torchcodec gives other frames than a sequential decode."""
    found = decode(path, THUMB)
    if not found.footage.frames:
        return found.footage
    count = found.footage.frames
    numbers = sorted({int(i) for i in np.linspace(0, count - 1, min(count, PROBES))})
    try:
        thumbs = tv.resize(sought(path, numbers).float(), list(found.frames_THWC.shape[1:3]), antialias=True)
    except Exception as error:
        return replace(found.footage, frames=0, fault=f"torchcodec cannot read it: {str(error).splitlines()[0][:80]}")
    wanted = torch.from_numpy(found.frames_THWC).permute(0, 3, 1, 2).float()
    for number, thumb in zip(numbers, thumbs, strict=True):
        gaps = (wanted - thumb).abs().mean((1, 2, 3))
        nearest = int(gaps.argmin())
        if float(gaps[number] - gaps[nearest]) > SLACK:
            fault = f"torchcodec gives frame {nearest} for frame {number}: use clip.decoder: pyav"
            return replace(found.footage, frames=0, fault=fault)
    return found.footage
