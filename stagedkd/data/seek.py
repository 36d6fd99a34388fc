"""Random access to video files with torchcodec, for files where it gives the same frames as a sequential decode.

torchcodec seeks instead of decoding every frame, but returns wrong frames on some files (packed B-frames, as in
UCF101). So each file is compared with the sequential decode when the data set is indexed.
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
        frames_T3HW = sought(self.root / path, None if frame_indices is None else [int(i) for i in frame_indices])
        size = scaled(frames_T3HW.shape[-2], frames_T3HW.shape[-1], self.shorter_side)
        return tv.resize(frames_T3HW, list(size), antialias=True).permute(0, 2, 3, 1).contiguous().numpy()


def require_torchcodec() -> None:
    """Raise UsageError if torchcodec is not installed or finds no FFmpeg."""
    try:
        import torchcodec  # noqa: F401  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as error:
        hint = "run: pip install 'stagedkd[torchcodec]' and install FFmpeg's libraries; or set clip.decoder: pyav"
        raise UsageError(f"clip.decoder: torchcodec cannot be used: {str(error).splitlines()[0]}", hint=hint) from None


def sought(path: Path, frame_indices: Sequence[int] | None) -> Tensor:
    """Read frames by random access (None: all of them), uint8 (T, 3, H, W)."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore

    decoder = VideoDecoder(str(path), seek_mode="exact")
    return decoder.get_frames_at(list(range(len(decoder))) if frame_indices is None else list(frame_indices)).data


def proven(path: Path) -> Footage:
    """Return what a file holds, with a fault if torchcodec gives other frames than a sequential decode."""
    decoded = decode(path, THUMB)
    footage, count = decoded.footage, decoded.footage.frames
    if not count:
        return footage
    frame_indices = sorted({int(i) for i in np.linspace(0, count - 1, min(count, PROBES))})
    try:
        thumbs = tv.resize(sought(path, frame_indices).float(), list(decoded.frames_THWC.shape[1:3]), antialias=True)
    except Exception as error:
        return replace(footage, frames=0, fault=f"torchcodec cannot read it: {str(error).splitlines()[0][:80]}")
    sequential = torch.from_numpy(decoded.frames_THWC).permute(0, 3, 1, 2).float()
    for index, thumb in zip(frame_indices, thumbs, strict=True):
        gaps = (sequential - thumb).abs().mean((1, 2, 3))
        nearest = int(gaps.argmin())
        if float(gaps[index] - gaps[nearest]) > SLACK:
            fault = f"torchcodec gives frame {nearest} for frame {index}: use clip.decoder: pyav"
            return replace(footage, frames=0, fault=fault)
    return footage
