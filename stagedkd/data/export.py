"""Export a simulated set as video files in the layout of UCF101 or HMDB51, for real loaders and other tools.

With official lists, the classes of the simulator are assigned to the classes of the lists in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from stagedkd.data.layouts.official import HMDB_LISTS, UCF_LISTS, UCF_VIDEOS
from stagedkd.data.simulate import render
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Simulated

Layout = Literal["ucf101", "hmdb51"]
GROUP = 4  # clips in a group, if there is no official list
BATCH = 16  # clips rendered at once


@dataclass(frozen=True)
class PlannedVideo:
    """A video to be written: its path below the set, the id of the simulated clip, and the split that sets its look."""

    path: str
    clip_id: int
    split: str


@dataclass(frozen=True)
class Look:
    """The format of the videos: number of frames, height and width in pixels (even), frames per second."""

    frames: int
    height: int
    width: int
    fps: float


def export(
    data: Simulated,
    out: Path,
    layout: Layout,
    lists: Path | None,
    look: Look,
    workers: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write the set into `out`, a new folder, and return the number of videos.

    Args:
        lists: a folder of official lists, whose videos are written; None: lists are made for the set's splits.
    """
    folder_of_lists = out / (UCF_LISTS if layout == "ucf101" else HMDB_LISTS)
    texts = _read_lists(lists) if lists else _make_lists(data, layout)
    folder_of_lists.mkdir(parents=True)
    for name, text in texts.items():
        (folder_of_lists / name).write_bytes(text)
    planned = _plan_videos(data, layout, texts)
    root = out / UCF_VIDEOS if layout == "ucf101" else out
    for folder in {Path(video.path).parent for video in planned}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        done = 0
        for part in _batches(planned):
            clips = _render(part, data, look)
            for _ in pool.map(
                lambda pair: write_video(root / pair[0].path, pair[1], look), zip(part, clips, strict=True)
            ):
                done += 1
                progress(done, len(planned))
    return len(planned)


def _batches(planned: Sequence[PlannedVideo]) -> Iterator[list[PlannedVideo]]:
    """Yield batches of videos of one split."""
    for split in sorted({video.split for video in planned}):
        members = [video for video in planned if video.split == split]
        yield from (members[i : i + BATCH] for i in range(0, len(members), BATCH))


def _render(part: Sequence[PlannedVideo], data: Simulated, look: Look) -> list[np.ndarray]:
    """Render each video as squares and crop the middle: uint8 (T, H, W, 3)."""
    size, clip_ids = max(look.height, look.width), np.array([video.clip_id for video in part])
    frames_BTHWC = render(clip_ids, data, part[0].split, look.frames, size, torch.device("cpu")).permute(0, 2, 3, 4, 1)
    top, left = (size - look.height) // 2, (size - look.width) // 2
    return list(frames_BTHWC[:, :, top : top + look.height, left : left + look.width].contiguous().numpy())


def write_video(path: Path, frames_THWC: np.ndarray, look: Look) -> None:
    """Write an MPEG-4 file with B-frames, like those of UCF101; it is moved to its place when it is complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with av.open(str(temporary), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(look.fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = look.width, look.height, "yuv420p"
        stream.bit_rate = 200 * look.width * look.height
        stream.options = {"bf": "2", "flags": "+qscale", "global_quality": "354"}  # quality 3 in FFmpeg's units of 118
        for picture in frames_THWC:
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


# ---------------------------------------------------------------- lists


def _read_lists(folder: Path) -> dict[str, bytes]:
    """Read official lists: file name -> text."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def _make_lists(data: Simulated, layout: Layout) -> dict[str, bytes]:
    """Make lists of the set's splits: file name -> text. Training and validation clips form the training list."""
    names = class_names(data)
    tests: dict[str, list[bool]] = {name: [] for name in names}  # class -> whether each of its clips is a test clip
    for clip_id in range(data.train + data.val + data.test):
        tests[names[clip_id % len(names)]].append(clip_id >= data.train + data.val)
    named = {name: _clip_names(name, row, layout) for name, row in tests.items()}
    if layout == "hmdb51":
        return {
            f"{name}_test_split1.txt": "".join(f"{clip} {2 if test else 1} \n" for clip, test in clips).encode()
            for name, clips in named.items()
        }
    ids = {name: i for i, name in enumerate(names, 1)}
    train = [f"{name}/{clip} {ids[name]}\n" for name, clips in named.items() for clip, test in clips if not test]
    test = [f"{name}/{clip}\n" for name, clips in named.items() for clip, test in clips if test]
    texts = {
        "classInd.txt": [f"{i} {name}\n" for name, i in ids.items()],
        "trainlist01.txt": train,
        "testlist01.txt": test,
    }
    return {name: "".join(lines).encode() for name, lines in texts.items()}


def _clip_names(name: str, tests: Sequence[bool], layout: Layout) -> list[tuple[str, bool]]:
    """Name the clips of a class and say which are test clips; a group has GROUP clips of one split."""
    names: list[tuple[str, bool]] = []
    group = 0
    for is_test in (False, True):
        members = [test for test in tests if test is is_test]
        for i in range(len(members)):
            group += i % GROUP == 0
            clip = i % GROUP + 1
            ucf, hmdb = f"v_{name}_g{group:02d}_c{clip:02d}.avi", f"sim{group:03d}_{name}_f_nm_np1_fr_goo_{clip}.avi"
            names.append((ucf if layout == "ucf101" else hmdb, is_test))
    return names


def _plan_videos(data: Simulated, layout: Layout, texts: dict[str, bytes]) -> list[PlannedVideo]:
    """Plan every video that the lists name; each gets a clip of its class that no other video has."""
    names = class_names(data)
    listed: dict[str, tuple[str, str]] = {}  # path -> class and split in the first list that names it
    for name, text in texts.items():
        if name == "classInd.txt":
            continue
        for words in (line.split() for line in text.decode("utf-8-sig").splitlines() if line.strip()):
            label = name.partition("_test_split")[0] if layout == "hmdb51" else words[0].partition("/")[0]
            test = words[1] == "2" if layout == "hmdb51" else name.startswith("testlist")
            path = f"{label}/{words[0]}" if layout == "hmdb51" else words[0]
            listed.setdefault(path, (label, "test" if test else "train"))
    labels = {label: i for i, label in enumerate(sorted({label for label, _ in listed.values()}))}
    used = [0] * len(names)
    planned: list[PlannedVideo] = []
    for path, (label, split) in sorted(listed.items()):
        kind = names.index(label) if label in names else labels[label] % len(names)
        planned.append(PlannedVideo(path, used[kind] * len(names) + kind, split))
        used[kind] += 1
    return planned
