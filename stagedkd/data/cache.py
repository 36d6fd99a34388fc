"""The clip cache: the decoded frames of a data set in memory-mapped shards. It can be removed and rebuilt at any time.

The cache has a content key but is not an artifact: `<cache>/<key16>/shard-NNNNN.bin` with a `.json` beside it. The
`.json` is written last, so that a shard is complete or absent and a killed build resumes at the first absent one. A
long clip of a shard has a file of its own, `shard-NNNNN-KK.bin`. The times of all frames of a shard are in
`shard-NNNNN.times`, as float64; only `Prepare` reads them. Each block of frames has a checksum, which is compared when
one of them is first read. The `.json` has a digest of its own and that of the times; a damaged one is built again.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.cache_index import read_index
from stagedkd.data.decode import DECODER_VERSION, Footage
from stagedkd.data.shard import BLOCK, Form
from stagedkd.errors import StoreError
from stagedkd.files import FileBytes
from stagedkd.plan.key import digest

SHARD_CLIPS = 64
LAYOUT = 2  # raised when the files of a cache change; part of its key


@dataclass(frozen=True)
class CacheSpec:
    """The content of a cache. `files`: path below `root` -> "size:sha256"; the cache is keyed by these."""

    root: Path
    files: Mapping[str, str]
    shorter_side: int
    form: Form = "raw"

    @property
    def name(self) -> str:
        """The name of the cache's folder."""
        return digest([DECODER_VERSION, LAYOUT, self.shorter_side, self.form, sorted(self.files.items())])[:16]

    @cached_property
    def paths(self) -> list[str]:
        """The paths of all clips, sorted."""
        return sorted(self.files)

    @cached_property
    def shards(self) -> list[list[str]]:
        """The paths of the clips in each shard."""
        return [self.paths[i : i + SHARD_CLIPS] for i in range(0, len(self.paths), SHARD_CLIPS)]


@dataclass(frozen=True)
class CachedClip:
    """A clip in the cache.

    Attributes:
        file: the name of the file that holds it; offset, size: its place there, in bytes.
        height, width: of the stored frames, in pixels.
        frames: the number of frames.
        crcs: the checksum of every block of frames, uint32; for JPEGs, then that of their places.
        first: the number of its first checksum among those of all clips.
    """

    file: str
    offset: int
    size: int
    height: int
    width: int
    frames: int
    crcs: Sequence[int]
    first: int


class ClipCache:
    """An open cache. Opening it checks that every file exists and has the size that it was written with.

    The places of the clips and their checksums are kept as arrays of numbers, some 100 bytes a clip.

    Raises:
        StoreError: a file is missing or has another size. DamagedIndexError: an index is not what was written.
    """

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.folder, self.form, self.paths = folder, spec.form, spec.paths
        self.blobs: dict[str, npt.NDArray[np.uint8]] = {}
        self.places, self.crcs, self.ends = array("q"), array("I"), array("q", [0])
        for number, paths in enumerate(spec.shards):
            listed = self._listing(number)
            for name, size in listed["bytes"].items():
                blob = folder / name
                if not blob.is_file() or blob.stat().st_size != size:
                    raise _damaged(blob, "has another size than it was written with")
                if blob.suffix == ".bin":
                    self.blobs[name] = np.memmap(blob, np.uint8, "r") if size else np.zeros(0, np.uint8)
            for path in paths:
                row = listed["clips"][path]
                own = 0 if row["file"] == f"shard-{number:05d}.bin" else 1 + row["number"]
                sizes = (row[name] for name in ("offset", "size", "height", "width", "frames"))
                self.places.extend((own, *sizes))
                self.crcs.extend(row["crcs"])
                self.ends.append(len(self.crcs))
        self.checked = bytearray(len(self.crcs))

    def clip(self, path: str) -> CachedClip:
        """Return the place of a clip. Raises KeyError if the cache does not have it."""
        index = bisect_left(self.paths, path)
        if index == len(self.paths) or self.paths[index] != path:
            raise KeyError(path)
        own, offset, size, height, width, frames = self.places[6 * index : 6 * index + 6]
        shard = f"shard-{index // SHARD_CLIPS:05d}"
        file = f"{shard}-{own - 1:02d}.bin" if own else f"{shard}.bin"
        first, end = self.ends[index : index + 2]
        return CachedClip(file, offset, size, height, width, frames, self.crcs[first:end], first)

    def footages(self) -> Iterator[tuple[str, Footage]]:
        """Read what each clip holds, one shard after the other."""
        for number in range(-(-len(self.paths) // SHARD_CLIPS)):
            listed, file = self._listing(number), FileBytes.read(self.folder / f"shard-{number:05d}.times")
            if listed.get("times", file.digest) != file.digest:
                raise _damaged(file.path, "is damaged")
            times = np.frombuffer(file.content, np.float64)
            for path, row in listed["clips"].items():
                start, end = row["times"]
                size = (row["frames"], row["full_height"], row["full_width"])
                yield path, Footage(*size, array("d", times[start:end].tobytes()), row["fault"], row["note"])

    def _listing(self, number: int) -> dict[str, Any]:
        return read_index(self.folder / f"shard-{number:05d}.json")

    def frames(
        self, path: str, frame_indices: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the frames of a clip with these indices (None: all of them), uint8 (T, H, W, 3).

        Raises:
            StoreError: the stored bytes of these frames differ from those that were written.
        """
        clip = self.clip(path)
        count = clip.frames
        indices = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        self.check(path, np.unique(indices // BLOCK).tolist())
        stored = self.blobs[clip.file][clip.offset : clip.offset + clip.size]
        if self.form == "raw":
            return np.ascontiguousarray(stored.reshape(count, clip.height, clip.width, 3)[indices])
        from torchvision.io import decode_jpeg  # it takes seconds to import

        ends = self._places(clip)
        pictures = [
            cast("torch.Tensor", decode_jpeg(torch.from_numpy(stored[ends[i] : ends[i + 1]].copy()))) for i in indices
        ]
        return torch.stack(pictures).permute(0, 2, 3, 1).contiguous().numpy()

    def check(self, path: str, blocks: Iterable[int] | None = None) -> None:
        """Compare the checksums of blocks of frames (None: all) that were not compared yet.

        Raises:
            StoreError: one differs.
        """
        clip = self.clip(path)
        every = range(len(clip.crcs))
        wanted = list(every if blocks is None else blocks)
        if self.form == "jpeg":  # their places first, by which the other blocks are found
            wanted = [*every[-1:], *wanted]
        for block in wanted:
            if self.checked[clip.first + block]:
                continue
            start, end = self._span(clip, block)
            with (self.folder / clip.file).open("rb") as stream:  # without mapping what is read only once
                stream.seek(clip.offset + start)
                if zlib.crc32(stream.read(end - start)) != clip.crcs[block]:
                    raise _damaged(self.folder / clip.file, f"is damaged at {path}")
            self.checked[clip.first + block] = True

    def _span(self, clip: CachedClip, block: int) -> tuple[int, int]:
        """Return where a block of frames begins and ends, in bytes from the beginning of the clip."""
        count = clip.frames
        first, last = min(count, block * BLOCK), min(count, (block + 1) * BLOCK)
        if self.form == "raw":
            return first * 3 * clip.height * clip.width, last * 3 * clip.height * clip.width
        if first == count:  # the places of the JPEGs
            return clip.size - 8 * (count + 1), clip.size
        ends = self._places(clip)
        return int(ends[first]), int(ends[last])

    def _places(self, clip: CachedClip) -> npt.NDArray[np.uint64]:
        """Return where each JPEG begins and where the last one ends, uint64 (T + 1,)."""
        end = clip.offset + clip.size
        return self.blobs[clip.file][end - 8 * (clip.frames + 1) : end].view(np.uint64)


def _damaged(blob: Path, what: str) -> StoreError:
    return StoreError(f"the clip cache {blob} {what}", hint=f"remove {blob.parent}: the next run builds it again")
