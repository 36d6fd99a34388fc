"""The clips of a training step: simulated, read from the cache or streamed from files, behind the same methods.

`load` runs on the host, in any thread; `finish` runs on the device, in the training thread. Together they are a pure
function of the views, so neither the batch, nor its order, nor the number of workers changes a pixel.

Shape legend: B clips, 3 = RGB, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.address import Address
from stagedkd.data.decode import decode, scaled
from stagedkd.data.keyframes import SOUGHT_FROM, KeyFrames, key_frames, window
from stagedkd.data.simulate import render
from stagedkd.data.views import Video, View, apply_view, apply_views, eval_views, train_view
from stagedkd.errors import Advice, DataError
from stagedkd.spec.schema import Augment, Clip, Simulated, sides

RENDER_CACHE_BYTES = 1 << 29  # uint8 clips kept in memory: rendering them once is cheaper than in every epoch
Indices = npt.NDArray[np.int64]
T = TypeVar("T")


class Reader(Protocol):
    """Reads frames of a video: a `ClipCache`, or the file itself."""

    def frames(self, path: str, frame_indices: Sequence[int] | Indices | None = None) -> npt.NDArray[np.uint8]:
        """Return the frames with these indices (None: all of them), uint8 (T, H, W, 3)."""
        ...


class ClipSource(Protocol):
    """Gives the pixels of clips, which are named by their ids."""

    loads: bool  # whether `load` does enough work to need threads

    def train_view(
        self, clip_id: int, augment: Augment, seed: int, epoch: int, draw: Sequence[float] | None = None
    ) -> View:
        """Return the random view of a clip in an epoch. `draw` is its row of `draw_views`, if it is known."""
        ...

    def load(self, clip_ids: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        """Load the frames of the views on the host, uint8 (T, 3, H, W) each."""
        ...

    def finish(self, clip_ids: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        """Apply the views on the device: float32 (B, 3, T, H, W) in 0..1, of the size of the view."""
        ...

    def views(self, clip_ids: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        """Return the fixed views for evaluation, one tensor a view, each as `finish` returns it."""
        ...


class SimulatedClips:
    """Clips of a simulator, rendered on the device as squares. `splits[clip_id]` decides how a clip looks."""

    loads = False

    def __init__(self, data: Simulated, splits: Sequence[str], clip: Clip, device: torch.device) -> None:
        self.data, self.splits, self.clip, self.device = data, splits, clip, device
        self.size, _ = sides(clip.size)  # the rules of a spec refuse other shapes
        self.plain, self.video = Clip(frames=clip.frames, size=self.size), Video(clip.frames, self.size, self.size)
        self.cached: dict[int, Tensor] = {}
        self.capacity = RENDER_CACHE_BYTES // (3 * clip.frames * self.size**2)

    def train_view(
        self, clip_id: int, augment: Augment, seed: int, epoch: int, draw: Sequence[float] | None = None
    ) -> View:
        return train_view(self.plain, augment, seed, epoch, clip_id, self.video, draw)

    def load(self, clip_ids: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        return []

    def finish(self, clip_ids: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        pictures = self._render(clip_ids)
        if all(view.is_plain(self.size) for view in views):
            return torch.stack(pictures).to(torch.float32) / 255
        return apply_views([picture.transpose(0, 1) for picture in pictures], views, self.size)

    def views(self, clip_ids: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        return [torch.stack(self._render(clip_ids)).to(torch.float32) / 255]

    def _render(self, clip_ids: Sequence[int]) -> list[Tensor]:
        """Return the clips, uint8 (3, T, H, W) each; render those that are not in memory yet."""
        missing = [i for i in dict.fromkeys(clip_ids) if i not in self.cached]
        fresh: dict[int, Tensor] = {}
        for split in sorted({self.splits[i] for i in missing}):
            members = [i for i in missing if self.splits[i] == split]
            rendered = render(np.array(members), self.data, split, self.clip.frames, self.size, self.device)
            fresh |= dict(zip(members, rendered, strict=True))
        for clip_id, picture in fresh.items():
            if len(self.cached) < self.capacity:
                self.cached[clip_id] = picture.clone()
        return [fresh[i] if i in fresh else self.cached[i] for i in clip_ids]


class VideoClips:
    """Clips of real videos. `paths[clip_id]` is the path of a clip; its views are drawn from `videos[clip_id]`."""

    loads = True

    def __init__(
        self, reader: Reader, paths: Sequence[str], videos: Sequence[Video], clip: Clip, device: torch.device
    ) -> None:
        self.reader, self.paths, self.videos, self.clip, self.device = reader, paths, videos, clip, device

    def train_view(
        self, clip_id: int, augment: Augment, seed: int, epoch: int, draw: Sequence[float] | None = None
    ) -> View:
        return train_view(self.clip, augment, seed, epoch, clip_id, self.videos[clip_id], draw)

    def load(self, clip_ids: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        return [self._read(clip_id, view.frames) for clip_id, view in zip(clip_ids, views, strict=True)]

    def finish(self, clip_ids: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        return apply_views([f.to(self.device, non_blocking=True) for f in loaded], views, self.clip.size)

    def views(self, clip_ids: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        rows: list[list[Tensor]] = []
        for clip_id in clip_ids:
            views = eval_views(self.clip, clips, crops, self.videos[clip_id])
            needed = np.unique(np.concatenate([view.frames for view in views]))  # each frame is read once
            frames = self._read(clip_id, needed).to(self.device)
            places = [torch.from_numpy(np.searchsorted(needed, v.frames)).to(self.device) for v in views]
            rows.append([apply_view(frames[at], v, self.clip.size) for at, v in zip(places, views, strict=True)])
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _read(self, clip_id: int, frame_indices: Indices) -> Tensor:
        frames_T3HW = torch.from_numpy(self.reader.frames(self.paths[clip_id], frame_indices)).permute(0, 3, 1, 2)
        return frames_T3HW.pin_memory() if self.device.type == "cuda" else frames_T3HW


class VideoFiles:
    """Decodes videos from their files at every call: the pixels of a raw cache, without its disk space. A window far
    from the beginning is decoded from a key frame before it, where that gives the same frames."""

    def __init__(self, root: Path, shorter_side: int) -> None:
        self.root, self.shorter_side = root, shorter_side
        self.known: dict[Path, KeyFrames | None] = {}

    def frames(self, path: str, frame_indices: Sequence[int] | Indices | None = None) -> npt.NDArray[np.uint8]:
        """Return the frames with these indices (None: all of them), uint8 (T, H, W, 3).

        Raises:
            DataError: the file has fewer frames than when it was indexed.
        """
        if frame_indices is None:
            return decode(Address.read(self.root, path), self.shorter_side).frames_THWC
        needed, address = np.unique(np.asarray(frame_indices)), Address.read(self.root, path)
        if (sought := self._window(address, needed)) is not None:
            return sought[np.searchsorted(needed, np.asarray(frame_indices))]
        decoded = decode(address, self.shorter_side, set(needed.tolist()))
        if len(decoded.frames_THWC) < len(needed):
            why = decoded.fault or f"only {decoded.footage.frames} frames are left"
            hint = Advice("restore the file, or accept it as it is", "lock")
            raise DataError(f"{self.root / path} has changed: {why}", hint=hint)
        return decoded.frames_THWC[np.searchsorted(needed, np.asarray(frame_indices))]

    def _window(self, address: Address, needed: Indices) -> npt.NDArray[np.uint8] | None:
        """Return frames by their rising indices from a key frame before them; None if they are near the beginning, or
        must be decoded from there."""
        part = address.part
        if address.pictures is not None or (part is None and needed[0] < SOUGHT_FROM):
            return None
        if address.file not in self.known:
            self.known[address.file] = key_frames(address.file)
        found = self.known[address.file]
        if found is None:
            return None
        start = 0 if part is None else int(part.start) if part.unit == "frames" else found.first_at(part.start)
        if start + needed[0] < SOUGHT_FROM:
            return None
        return window(address.file, found, [start + int(i) for i in needed], self.shorter_side)


def ahead(jobs: Iterator[Callable[[], T]], workers: int) -> Generator[T]:
    """Yield the results of jobs in their order; `workers` threads compute them a little ahead of the consumer."""
    with ThreadPoolExecutor(workers) as pool:
        queue = [pool.submit(job) for job in islice(jobs, workers + 1)]
        try:
            while queue:
                first = queue.pop(0)
                yield first.result()
                queue += [pool.submit(job) for job in islice(jobs, 1)]
        finally:
            for waiting in queue:
                waiting.cancel()


def videos_of(
    table: Mapping[str, Sequence[Any]], clip: Clip, times: Sequence[npt.NDArray[np.float64]] | None = None
) -> list[Video]:
    """Return the video of each row of clips.parquet, from which its views are drawn; sizes are of scaled frames.

    Args:
        times: of the frames of each clip, which `sampling: time` needs.
    """
    rows = zip(table["frames"], table["height"], table["width"], times or repeat(()), strict=False)
    return [Video(n, *scaled(h, w, clip.shorter_side), t) for n, h, w, t in rows]
