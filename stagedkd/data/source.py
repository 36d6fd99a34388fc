"""Where a training step gets its clips: simulated, cached or streamed, behind the same methods.

`load` is host work for any thread, `finish` is device work for the training thread; together they are a pure function
of the views, so neither the batch, its order nor the number of workers changes a pixel.

Shape legend: B clips, 3 = RGB, T frames, H, W pixels, S the size of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.decode import decode, scaled
from stagedkd.data.simulate import render
from stagedkd.data.views import Video, View, apply_view, eval_views, train_view
from stagedkd.errors import DataError
from stagedkd.spec.schema import Augment, Clip, Simulated

KEEP_BYTES = 1 << 29  # rendered clips kept in memory, uint8: rendering once is cheaper than once an epoch
Numbers = npt.NDArray[np.int64]
T = TypeVar("T")


class Reader(Protocol):
    """Frames of a video by number: a `ClipCache`, or the file itself."""

    def frames(self, path: str, numbers: Sequence[int] | Numbers | None = None) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3)."""
        ...


class ClipSource(Protocol):
    """Clips by number."""

    loads: bool  # whether `load` is worth a thread of its own

    def train_view(self, number: int, augment: Augment, seed: int, epoch: int) -> View:
        """The random view of a clip in an epoch."""
        ...

    def load(self, numbers: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        """The frames of the views on the host: uint8 (T, 3, H, W) each."""
        ...

    def finish(self, numbers: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        """The views on the device: float32 (B, 3, T, S, S) in 0..1."""
        ...

    def views(self, numbers: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        """Fixed views for evaluation, each as `finish` gives them."""
        ...


class SimulatedClips:
    """Clips of a simulator, rendered on the device. `splits[number]` says how a clip looks."""

    loads = False

    def __init__(self, data: Simulated, splits: Sequence[str], clip: Clip, device: torch.device) -> None:
        self.data, self.splits, self.clip, self.device = data, splits, clip, device
        self.kept: dict[int, Tensor] = {}
        self.room = KEEP_BYTES // (3 * clip.frames * clip.size**2)

    def train_view(self, number: int, augment: Augment, seed: int, epoch: int) -> View:
        plain = Clip(frames=self.clip.frames, size=self.clip.size)
        return train_view(plain, augment, seed, epoch, number, Video(plain.frames, plain.size, plain.size))

    def load(self, numbers: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        return []

    def finish(self, numbers: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        size, pictures = self.clip.size, self._rendered(numbers)
        if all(view.is_plain(size) for view in views):
            return torch.stack(pictures).to(torch.float32) / 255
        return torch.stack([apply_view(p.transpose(0, 1), view, size) for p, view in zip(pictures, views, strict=True)])

    def views(self, numbers: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        return [torch.stack(self._rendered(numbers)).to(torch.float32) / 255]

    def _rendered(self, numbers: Sequence[int]) -> list[Tensor]:
        """uint8 (3, T, H, W) each."""
        missing = [n for n in dict.fromkeys(numbers) if n not in self.kept]
        fresh: dict[int, Tensor] = {}
        for split in sorted({self.splits[n] for n in missing}):
            members = [n for n in missing if self.splits[n] == split]
            made = render(np.array(members), self.data, split, self.clip.frames, self.clip.size, self.device)
            fresh |= dict(zip(members, made, strict=True))
        for number, picture in fresh.items():
            if len(self.kept) < self.room:
                self.kept[number] = picture.clone()
        return [fresh[n] if n in fresh else self.kept[n] for n in numbers]


class VideoClips:
    """Clips of real videos. `paths[number]` is the path of a clip, `videos[number]` what its views are drawn from."""

    loads = True

    def __init__(
        self, reader: Reader, paths: Sequence[str], videos: Sequence[Video], clip: Clip, device: torch.device
    ) -> None:
        self.reader, self.paths, self.videos, self.clip, self.device = reader, paths, videos, clip, device

    def train_view(self, number: int, augment: Augment, seed: int, epoch: int) -> View:
        return train_view(self.clip, augment, seed, epoch, number, self.videos[number])

    def load(self, numbers: Sequence[int], views: Sequence[View]) -> list[Tensor]:
        return [self._picked(number, view.frames) for number, view in zip(numbers, views, strict=True)]

    def finish(self, numbers: Sequence[int], views: Sequence[View], loaded: Sequence[Tensor]) -> Tensor:
        pairs = zip(loaded, views, strict=True)
        size = self.clip.size
        return torch.stack([apply_view(f.to(self.device, non_blocking=True), view, size) for f, view in pairs])

    def views(self, numbers: Sequence[int], clips: int, crops: Literal[1, 3]) -> list[Tensor]:
        rows: list[list[Tensor]] = []
        for number in numbers:
            found = eval_views(self.clip, clips, crops, self.videos[number])
            wanted = np.unique(np.concatenate([view.frames for view in found]))  # each frame is read once
            frames = self._picked(number, wanted).to(self.device)
            places = [torch.from_numpy(np.searchsorted(wanted, v.frames)).to(self.device) for v in found]
            rows.append([apply_view(frames[at], v, self.clip.size) for at, v in zip(places, found, strict=True)])
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _picked(self, number: int, frames: Numbers) -> Tensor:
        read = torch.from_numpy(self.reader.frames(self.paths[number], frames)).permute(0, 3, 1, 2)
        return read.pin_memory() if self.device.type == "cuda" else read


class VideoFiles:
    """Reads videos from their files, each time anew: the pixels of a raw cache, without its space."""

    def __init__(self, root: Path, shorter_side: int) -> None:
        self.root, self.shorter_side = root, shorter_side

    def frames(self, path: str, numbers: Sequence[int] | Numbers | None = None) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3). Raises DataError: the file has fewer frames than when it was indexed."""
        if numbers is None:
            return decode(self.root / path, self.shorter_side).frames_THWC
        wanted = np.unique(np.asarray(numbers))
        found = decode(self.root / path, self.shorter_side, set(wanted.tolist()))
        if len(found.frames_THWC) < len(wanted):
            why = found.fault or f"{found.footage.frames} frames are left"
            raise DataError(f"{self.root / path} has changed: {why}", hint="restore it, or: stagedkd lock SPEC")
        return found.frames_THWC[np.searchsorted(wanted, np.asarray(numbers))]


def ahead(jobs: Iterator[Callable[[], T]], workers: int) -> Generator[T]:
    """Results of jobs in their order, computed by `workers` threads a little ahead of whoever takes them."""
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


def videos_of(table: Mapping[str, Sequence[Any]], clip: Clip) -> list[Video]:
    """What views are drawn from, for each row of clips.parquet: the sizes are those of the scaled frames."""
    rows = zip(table["frames"], table["height"], table["width"], table["times"], strict=True)
    timed = clip.sampling == "time"
    return [Video(n, *scaled(h, w, clip.shorter_side), tuple(t) if timed else ()) for n, h, w, t in rows]
