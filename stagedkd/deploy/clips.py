"""The clips on which an export is checked: those of the student's own data, or rendered ones where they are not at
hand. None is of the test split.

Shape legend: B clips, T frames, H, W pixels, 3 = RGB.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.simulate import render
from stagedkd.data.source import ClipSource, SimulatedClips, VideoClips, VideoFiles, videos_of
from stagedkd.deploy.student import Found, read_artifact
from stagedkd.errors import DataError, StoreError
from stagedkd.experiment.reproduce import manifest_in
from stagedkd.plan.runtime import Runtime
from stagedkd.report.card import StudentCard
from stagedkd.spec.schema import Clip, Simulated, Videos, sides
from stagedkd.stages.clips import videos_root
from stagedkd.stages.tables import read_table, read_times
from stagedkd.store.store import Artifact

RENDERED = 32
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CheckClips:
    """Clips by which a student is checked. `kind` is `validation` or `rendered`; `why` says why the latter. `labels`
    (n,) are the true classes of the `checked` clips, none for rendered ones."""

    kind: str
    why: str
    source: ClipSource
    checked: Sequence[int]
    calibration: Sequence[int]
    labels: npt.NDArray[np.int64] | None

    def frames(self, clip_ids: Sequence[int]) -> Frames:
        """The middle view of clips as an export takes them, uint8 (B, T, H, W, 3)."""
        (view_B3THW,) = self.source.views(clip_ids, 1, 1)
        return (view_B3THW * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().numpy()


def check_clips(found: Found, runtime: Runtime, most: int, calibrating: int) -> CheckClips:
    """Find up to `most` clips to check a student with, and up to `calibrating` training clips."""
    try:
        data = _data_of(found, runtime)
        return _real(data, found.card.clip, runtime, most, calibrating)
    except (StoreError, DataError, OSError) as error:
        return _rendered(found.card, getattr(error, "message", None) or str(error))


def _data_of(found: Found, runtime: Runtime) -> Artifact:
    """The artifact of the student's data. Raises StoreError: the store does not have it."""
    path = found.weights.path
    manifest = read_artifact(path.parent.parent).manifest if path.parent.name == "files" else manifest_in(path)
    store = path.parent.parent.parent if path.parent.name == "files" else runtime.folder("store")
    key = manifest.needs["data"]
    return read_artifact(store / key.folder(manifest.closure[key].work.kind))


def _real(data: Artifact, clip: Clip, runtime: Runtime, most: int, calibrating: int) -> CheckClips:
    section, content = data.manifest.work.data_set, data.read("clips.parquet")
    table = read_table(content, "path", "split", "frames", "height", "width")
    device = torch.device("cpu")
    source: ClipSource
    if isinstance(section, Simulated):
        source = SimulatedClips(section, table["split"], clip, device)
    else:
        assert isinstance(section, Videos)
        root = videos_root(section, runtime)
        if not root.is_dir():
            raise DataError(f"the videos are not at {root}", hint="name their folder with --data-dir")
        videos = videos_of(table, clip, read_times(content) if clip.sampling == "time" else None)
        source = VideoClips(VideoFiles(root, clip.shorter_side), table["path"], videos, clip, device)
    of_split = {name: [i for i, split in enumerate(table["split"]) if split == name] for name in ("train", "val")}
    checked, calibration = _spread(of_split["val"], most), _spread(of_split["train"], calibrating)
    if not checked:
        raise DataError("the data have no validation split", hint="set data.val_folds")
    labels = np.array(read_table(data.read("truth.parquet"))["label"], np.int64)[checked]
    made = CheckClips("validation", "", source, checked, calibration, labels)
    made.frames(checked[:1])  # the files may be gone
    return made


def _spread(ids: Sequence[int], most: int) -> list[int]:
    """At most so many of the ids, evenly spread: clips of one class often follow one another."""
    if len(ids) <= most:
        return list(ids)
    return [ids[i * len(ids) // most] for i in range(most)]


class _Rendered:
    """Moving shapes, rendered for the clip of a student."""

    loads = False

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def views(self, clip_ids: Sequence[int], clips: int, crops: int) -> list[torch.Tensor]:
        height, width = sides(self.clip.size)
        shapes = Simulated(kind="shapes")
        size = max(height, width)
        squares = render(np.array(clip_ids), shapes, "val", self.clip.frames, size, torch.device("cpu"))
        return [squares[..., (size - height) // 2 :, (size - width) // 2 :][..., :height, :width].float() / 255]


def _rendered(card: StudentCard, why: str) -> CheckClips:
    return CheckClips("rendered", why, _Rendered(card.clip), range(RENDERED), (), None)  # pyright: ignore[reportArgumentType]
