"""Windows of long videos that are decoded from a key frame: the frames of a decode from the beginning, to the bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stagedkd.data import keyframes
from stagedkd.data.address import Address
from stagedkd.data.decode import decode
from stagedkd.data.keyframes import SOUGHT_FROM, key_frames
from stagedkd.data.source import VideoFiles

FRAMES, SIDE = 700, 32
SOURCE = f"testsrc2=s=48x40:r=25:d={FRAMES / 25}"
VIDEOS = {  # name -> encoder's arguments
    "h264.mp4": "-c:v libx264 -preset ultrafast -bf 3 -g 60",
    "open.mkv": "-c:v libx264 -preset veryfast -bf 3 -g 60 -x264-params open-gop=1",
    "hevc.mp4": "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=60:open-gop=1",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 60",
    "mpeg4.mp4": "-c:v mpeg4 -bf 2 -g 60",
}


def make(path: Path, arguments: str, source: str = SOURCE) -> Path:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here: install it")
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, *arguments.split(), "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(path)], check=True)
    return path


@pytest.mark.parametrize("name", VIDEOS)
def test_windows_from_a_key_frame_are_those_from_the_beginning(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / name, VIDEOS[name])
    every = decode(Address(path), SIDE).frames_THWC
    found = key_frames(path)
    assert len(every) == FRAMES and found is not None and len(found.times) == FRAMES
    decoded: list[int] = []
    frames_from = keyframes._frames_from

    def counted(*arguments: object) -> object:
        for frame in frames_from(*arguments):  # type: ignore[arg-type]
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(keyframes, "_frames_from", counted)
    files = VideoFiles(tmp_path, SIDE)
    files.known[path] = found
    for first in (SOUGHT_FROM, 299, 300, 301, 359, 540, FRAMES - 16):
        window = [first, *range(first + 1, first + 16, 3), first + 3]  # neither rising nor unique
        decoded.clear()
        assert np.array_equal(files.frames(name, window), every[window]), first
        assert 0 < len(decoded) <= 2 * 60 + 16 + 4  # two groups of pictures and the window


def test_parts_of_a_long_video(tmp_path: Path) -> None:
    path = make(tmp_path / "long.mp4", VIDEOS["h264.mp4"])
    every = decode(Address(path), SIDE).frames_THWC
    files = VideoFiles(tmp_path, SIDE)
    assert np.array_equal(files.frames("long.mp4#f=500,520", [0, 7, 19]), every[[500, 507, 519]])
    assert np.array_equal(files.frames("long.mp4#t=20,24", [0, 3, 99]), every[[500, 503, 599]])
    assert files.known[path] is not None
    assert np.array_equal(files.frames("long.mp4#f=10,20", [0, 9]), every[[10, 19]])


@pytest.mark.parametrize(
    ("name", "arguments", "source"),
    [
        ("h264.ts", VIDEOS["h264.mp4"], SOURCE),  # a format whose packets need not be pictures
        ("packed.avi", VIDEOS["mpeg4.mp4"], SOURCE),
        ("short.mp4", VIDEOS["h264.mp4"], "testsrc2=s=48x40:r=25:d=8"),
        ("one_key.mp4", "-c:v libx264 -preset ultrafast -g 9999", SOURCE),
    ],
)
def test_where_nothing_is_proven_decoding_is_sequential(tmp_path: Path, name: str, arguments: str, source: str) -> None:
    path = make(tmp_path / name, arguments, source)
    assert key_frames(path) is None
    every = decode(Address(path), SIDE).frames_THWC
    files = VideoFiles(tmp_path, SIDE)
    last = list(range(len(every) - 9, len(every)))
    assert np.array_equal(files.frames(name, last), every[last])


def test_a_clock_that_jumps_back_or_an_edit_list_is_not_entered(tmp_path: Path) -> None:
    path = make(tmp_path / "long.mp4", VIDEOS["h264.mp4"])
    cut = tmp_path / "cut.mp4"  # its edit list hides the pictures before the cut
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "1.5", "-i", str(path), "-c", "copy", str(cut)], check=True)
    assert key_frames(path) is not None and key_frames(cut) is None
    assert key_frames(tmp_path / "gone.mp4") is None
