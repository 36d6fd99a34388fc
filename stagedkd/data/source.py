"""Where a training step gets its clips: one class for simulated sets, one for cached videos, the same two methods.

Shape legend: B clips, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.cache import ClipCache
from stagedkd.data.simulate import shapes
from stagedkd.data.views import View, apply_view, eval_views, normalise, train_view
from stagedkd.spec.schema import Augment, Clip, Shapes

KEEP_BYTES = 1 << 29  # rendered clips kept in memory, uint8: rendering once is cheaper than once an epoch


class ClipSource(Protocol):
    """Clips by number. Views depend on (seed, epoch, number), never on the batch or its order."""

    def train(self, numbers: npt.NDArray[np.int64], augment: Augment, seed: int, epoch: int) -> Tensor:
        """Random views, normalised float32 (B, 3, T, H, W) on the device."""
        ...

    def views(self, numbers: npt.NDArray[np.int64], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        """Fixed views for evaluation, each as `train` gives them."""
        ...


class SimulatedClips:
    """Clips of a simulator, rendered on the device."""

    def __init__(self, data: Shapes, clip: Clip, device: torch.device) -> None:
        self.data, self.clip, self.device = data, clip, device
        self.kept: dict[int, Tensor] = {}
        self.room = KEEP_BYTES // (3 * clip.frames * clip.size**2)

    def train(self, numbers: npt.NDArray[np.int64], augment: Augment, seed: int, epoch: int) -> Tensor:
        if augment.crop == 1 and not augment.flip and not augment.jitter:
            return self.views(numbers, 1, 1)[0]
        size, frames = self.clip.size, self.clip.frames
        pictures: list[Tensor] = []
        for number, picture in zip(numbers.tolist(), self._rendered(numbers), strict=True):
            view = train_view(self.clip, augment, seed, epoch, number, frames, size, size)
            whole = View(np.arange(frames), view.box, view.flip, view.brightness, view.contrast)
            pictures.append(apply_view(picture.transpose(0, 1), whole, size))
        return normalise(torch.stack(pictures))

    def views(self, numbers: npt.NDArray[np.int64], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        return [normalise(torch.stack(self._rendered(numbers)).to(torch.float32) / 255)]

    def _rendered(self, numbers: npt.NDArray[np.int64]) -> list[Tensor]:
        """uint8 (3, T, H, W) each."""
        missing = np.array([n for n in numbers.tolist() if n not in self.kept], np.int64)
        fresh: dict[int, Tensor] = {}
        if len(missing):
            made = shapes.render(missing, self.data, self.clip.frames, self.clip.size, self.device)
            fresh = dict(zip(missing.tolist(), made, strict=True))
            for number, picture in fresh.items():
                if len(self.kept) < self.room:
                    self.kept[number] = picture.clone()
        return [fresh[n] if n in fresh else self.kept[n] for n in numbers.tolist()]


class CachedClips:
    """Clips of real videos, from the cache. `paths[number]` is the path of a clip."""

    def __init__(self, cache: ClipCache, paths: list[str], clip: Clip, device: torch.device) -> None:
        self.cache, self.paths, self.clip, self.device = cache, paths, clip, device

    def train(self, numbers: npt.NDArray[np.int64], augment: Augment, seed: int, epoch: int) -> Tensor:
        pictures: list[Tensor] = []
        for number in numbers.tolist():
            frames = self.cache.frames(self.paths[number])
            view = train_view(self.clip, augment, seed, epoch, number, *frames.shape[:3])
            pictures.append(self._picture(frames, view))
        return normalise(torch.stack(pictures))

    def views(self, numbers: npt.NDArray[np.int64], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        rows: list[list[Tensor]] = []
        for number in numbers.tolist():
            frames = self.cache.frames(self.paths[number])
            views = eval_views(self.clip, clips, crops, *frames.shape[:3])
            rows.append([self._picture(frames, view) for view in views])
        return [normalise(torch.stack(column)) for column in zip(*rows, strict=True)]

    def _picture(self, frames_THWC: npt.NDArray[np.uint8], view: View) -> Tensor:
        picked = torch.from_numpy(np.ascontiguousarray(frames_THWC[view.frames])).to(self.device)
        return apply_view(picked.permute(0, 3, 1, 2), view, self.clip.size)
